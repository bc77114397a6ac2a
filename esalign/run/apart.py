"""Calling a function in a fresh Python process, where no engine has changed the libraries and no memory is taken."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from esalign.errors import BackendError, EsalignError

T = TypeVar("T")


def call_apart(function: Callable[..., T], **arguments: Any) -> T:
    """Call a function of a module in a process of its own, which ends with the call.

    Args:
        function: what to call; it must be importable by name.
        **arguments: its arguments, as JSON has them.

    Returns:
        What it returns, as JSON has it.

    Raises:
        BackendError: it raised an error, which is in the message; or the process died.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(  # noqa: S603  (our own interpreter and code)
            [
                sys.executable,
                "-P",
                "-W",
                "ignore",
                "-m",
                __name__,
                function.__module__,
                function.__name__,
                str(answer),
                str(os.getpid()),
            ],
            input=json.dumps(arguments),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the run, which stops when it is ready
            check=False,
        )
        if done.returncode == 0:
            result = json.loads(answer.read_text(encoding="utf-8"))
            if "error" in result:
                raise BackendError(result["error"])
            value: T = result["value"]
            return value
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
    why = f"was killed by signal {-done.returncode}: out of memory?" if done.returncode < 0 else f"failed: {last[:300]}"
    raise BackendError(f"the process of transformers and peft {why}")


def _answer(module: str, name: str, file: str, caller: str) -> None:
    """Do what `call_apart` asks of this process: arguments come by standard input, the result goes to a file."""
    threading.Thread(target=_end_with, args=(int(caller),), daemon=True).start()
    arguments = json.load(sys.stdin)
    try:
        result = {"value": getattr(importlib.import_module(module), name)(**arguments)}
    except EsalignError as error:
        result = {"error": str(error)}
    Path(file).write_text(json.dumps(result), encoding="utf-8")


def _end_with(caller: int) -> None:
    """End this process when the one that started it is gone, killed perhaps: nobody waits for the answer."""
    while os.getppid() == caller:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
