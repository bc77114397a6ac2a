"""States survive, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from esalign.errors import CheckpointError
from esalign.files import JsonLines, read_json_lines
from esalign.run.checkpoint import Checkpoints, load_state, save_state

STATE = {
    "number": 3,
    "infinite": float("-inf"),
    "text": "ä",
    "none": None,
    "flags": [True, False],
    "inner": {"vector": np.arange(5) / 3, "bits": np.array([1, 2**63], dtype=np.uint64), "deep": [{"x": np.eye(2)}]},
}


def test_state_comes_back_bit_equal(tmp_path):
    save_state(STATE, tmp_path / "state.npz")
    again = load_state(tmp_path / "state.npz")
    assert {key: again[key] for key in ("number", "infinite", "text", "none", "flags")} == {
        key: STATE[key] for key in ("number", "infinite", "text", "none", "flags")
    }
    for mine, theirs in (
        (again["inner"]["vector"], STATE["inner"]["vector"]),
        (again["inner"]["bits"], STATE["inner"]["bits"]),
        (again["inner"]["deep"][0]["x"], np.eye(2)),
    ):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)


def test_checkpoints_hold_no_pickles(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        save_state({"object": object()}, tmp_path / "state.npz")
    assert not list(tmp_path.iterdir())


def test_broken_checkpoint_is_one_clear_error(tmp_path):
    file = tmp_path / "state.npz"
    save_state(STATE, file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        load_state(file)


def test_only_the_newest_checkpoints_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load_last() is None
    for generation in range(5):
        checkpoints.save({"generation": generation}, generation)
    assert checkpoints.load_last() == {"generation": 4}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_kill_while_writing_never_leaves_a_broken_checkpoint(tmp_path):
    code = (
        "import itertools, sys, numpy as np, pathlib\n"
        "from esalign.run.checkpoint import Checkpoints\n"
        "checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))\n"
        "for n in itertools.count(): checkpoints.save({'n': n, 'x': np.full(200_000, n)}, n)"
    )
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("generation-*.npz")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 + 0.037 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        state = Checkpoints(tmp_path).load_last()
        assert (state["x"] == state["n"]).all()


def test_metrics_lines_survive_a_torn_end_and_drop_later_generations(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = JsonLines(file)
    for generation in range(4):
        lines.append({"generation": generation, "loss": float("nan") if generation == 1 else 0.5})
    with file.open("a") as stream:
        stream.write('{"generation": 4, "lo')
    assert [row["generation"] for row in read_json_lines(file)] == [0, 1, 2, 3]
    lines.keep_until(2)
    assert file.read_text().count("\n") == 3
    assert json.loads(file.read_text().splitlines()[1])["loss"] is None


def test_a_broken_line_in_the_middle_is_told_with_its_number(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"generation": 0}\nnonsense\n{"generation": 1}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        read_json_lines(file)
