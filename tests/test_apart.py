"""Functions called in a fresh process: what comes back, whatever becomes of the process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esalign.config.reading import parse_override
from esalign.errors import BackendError
from esalign.run.apart import call_apart


def test_a_function_called_apart_returns_what_it_returns_here():
    assert call_apart(parse_override, text="a.b=[1, 2.5]") == {"a": {"b": [1, 2.5]}}
    assert call_apart(os.getpid) != os.getpid()


def test_what_this_process_has_changed_does_not_reach_it(monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_: "changed")
    monkeypatch.setattr("esalign.run.apart.json.dumps", lambda *_: '{"text": "a=1"}')
    assert call_apart(parse_override, text="a=1") == {"a": 1}


def test_a_killed_caller_leaves_no_process_behind():
    code = (
        "from http.server import test\nfrom esalign.run.apart import call_apart\ncall_apart(test, port=0)\n"  # for ever
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as caller:
        children, deadline = Path(f"/proc/{caller.pid}/task/{caller.pid}/children"), time.monotonic() + 60
        while not (started := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        caller.kill()
    while is_running(started[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(started[0])


def is_running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "(zombie)" not in status.read_text()


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (parse_override, {"text": "none"}, "cannot read the override 'none', expected section.key=value"),
        (json.loads, {"s": "{"}, "process of transformers and peft failed: json.decoder.JSONDecodeError: Expecting"),
        (os.abort, {}, "process of transformers and peft was killed by signal 6: out of memory?"),
        (os._exit, {"status": 3}, "process of transformers and peft failed: no word"),
        (os.times, {"none": 1}, "failed: TypeError"),
    ],
)
def test_however_it_ends_the_error_is_one_line(function, arguments, message):
    with pytest.raises(BackendError) as error:
        call_apart(function, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
