"""A small real run on disk: a random model, an adapter, a data set and a reward, for tests of anything that runs."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from models import make_tiny

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
"""What the command line sets before it imports anything, and what comes too late in a process that has imported all."""

REWARD = '''"""A graded reward that depends on every token: the share of distinct characters."""


def variety(prompts, completions: list[str], **columns):
    return [len(set(text)) / 40 for text in completions]
'''


def write_run(folder: Path, **changes: Any) -> Path:
    """Write everything that a run of a second needs, and return its configuration file."""
    if not (folder / "model").exists():
        make_tiny(folder, rank=2)
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(12) for b in range(12)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"path": str(folder / "model"), "adapter": str(folder / "adapter")},
        "backend": {"dtype": "float32", "device": "cpu", "self_test": 0},
        "data": {"source": str(folder / "data.jsonl"), "validation_size": 8, "test_size": 16},
        "rewards": [{"name": f"{folder / 'reward.py'}:variety"}],
        "scoring": {"workers": 0},
        "sampling": {"max_tokens": 8},
        "fitness": {"prompts": 6},
        "optimizer": {"name": "cma-es", "population": 6, "sigma": 0.5},
        "run": {
            "name": "small",
            "dir": str(folder / "runs"),
            "generations": 6,
            "evaluate_every": 2,
            "kl_prompts": 4,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section] = {**config[section], name: value} if name else value
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@dataclass
class Command:
    """A command line that runs, or has run, in a process of its own."""

    pid: int
    folder: Path
    returncode: int | None = None

    @property
    def stdout(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "err").read_text()

    def send(self, signal_number: int) -> None:
        os.kill(self.pid, signal_number)

    def wait(self) -> "Command":
        if self.returncode is None:
            self.returncode = _ask({"wait": self.pid})
        return self


@cache
def _server() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("command_server.py")
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **QUIET, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def _ask(request: dict[str, Any]) -> int:
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def start_esalign(*arguments: object, room: int | None = None) -> Command:
    """Start the command line as a user does, and return while it runs; room limits the bytes of a file it writes."""
    folder = Path(tempfile.mkdtemp())
    request = {"args": [str(argument) for argument in arguments], "room": room}
    return Command(_ask({**request, "out": str(folder / "out"), "err": str(folder / "err")}), folder)


def esalign(*arguments: object, room: int | None = None) -> Command:
    """Run the command line as a user does, to its end."""
    return start_esalign(*arguments, room=room).wait()


def kill_at_random_moments(command: str, file: Path, folder: Path, *, kills: int) -> None:
    """Start a run so many times, each time killing it (SIGKILL) a moment after it got further; then let it finish.

    The run must be far longer than its kills, as on a busy machine it goes on until the signal arrives.
    """
    chance, progress = random.Random(0), folder / "metrics.jsonl"
    for _ in range(kills):
        resume = ["--resume"] if folder.exists() else []
        size = progress.stat().st_size if progress.exists() else 0
        started = start_esalign(command, file, *resume)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (progress.exists() and progress.stat().st_size > size):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        started.send(signal.SIGKILL)
        started.wait()
        assert not (folder / "result.json").exists(), "the run ended before it was killed"
    done = esalign(command, file, "--resume")
    assert done.returncode == 0, done.stderr


def kill_once_and_resume(folder: Path) -> Command:
    """Kill a run of ``run.yaml`` (SIGKILL) after two generations; resumed, it ends as ``small``, which was left alone.

    Returns the command of the latter.
    """
    killed, whole = folder / "runs" / "killed", folder / "runs" / "small"
    long = (folder / "run.yaml", "run.generations=24")  # far more than pass before a signal arrives on a busy machine
    alone = esalign("run", *long)
    assert (alone.returncode, alone.stderr) == (0, "")
    command = start_esalign("run", *long, "run.name=killed")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _count_lines(killed) < 3:
        time.sleep(0.002)
    command.send(signal.SIGKILL)
    assert command.wait().returncode == -signal.SIGKILL
    assert 3 <= _count_lines(killed) < 25, "killed too late, so this shows nothing"
    resumed = esalign("run", *long, "run.name=killed", "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert reproducible(killed) == reproducible(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    return alone


def _count_lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def reproducible(folder: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without what depends on the machine."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "machine"} for line in lines]
