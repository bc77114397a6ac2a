"""A run over a cluster whose own process is killed goes on with other workers, as if nothing had been."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from processes import MARK, marked, wait_until
from runs import reproducible, write_run

pytest.importorskip("ray")

CLUSTER = {"workers": 1, "cpus": 0.2, "cut_for": 2, "unit": 4, "address": "local"}
THERE = ("scoring.place=cluster", "scoring.workers=2")
WEIGHTS = "adapter/adapter_model.safetensors"


def start(mark, *arguments):
    """Start `esalign run`; it and all that it starts have the mark."""
    command = [Path(sys.executable).with_name("esalign"), "run", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {MARK: mark}, stdin=subprocess.DEVNULL)


def test_a_killed_run_goes_on_with_fewer_workers_and_leaves_nothing_behind(tmp_path):
    file, mark = write_run(tmp_path, cluster=CLUSTER, run__generations=24), uuid.uuid4().hex
    killed, whole = tmp_path / "runs" / "killed", tmp_path / "runs" / "whole"
    victim, metrics = start(mark, file, "run.name=killed", "cluster.workers=2", *THERE), killed / "metrics.jsonl"
    assert wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, 300.0)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    assert 3 <= metrics.read_text().count("\n") < 25, "killed too late, so this shows nothing"
    # workers end at once; two agents of a Ray that the run had started look for their server for a while
    assert wait_until(lambda: not marked(mark), 120.0), commands_of(marked(mark))
    for arguments in (("run.name=whole",), ("run.name=killed", *THERE, "--resume")):
        assert start(mark, file, *arguments).wait(600) == 0
    assert reproducible(killed) == reproducible(whole)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert wait_until(lambda: not marked(mark)), commands_of(marked(mark))


def test_a_process_that_joined_a_cluster_ends_by_sigterm_without_a_trace():
    mark = uuid.uuid4().hex
    # Sleeps in naps: one long wait, entered as the signal comes, would never see it.
    code = (
        "import time; from esalign.engines.cluster.ray_workers import connect; connect('local', 0)\n"
        "print(1, end='', flush=True)\n"
        "while True: time.sleep(0.1)"
    )
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | {MARK: mark}, **told) as joined:
        assert joined.stdout.read(1) == b"1"
        joined.terminate()
        assert joined.wait(60) == 128 + signal.SIGTERM
        assert joined.stderr.read() == b""
    assert wait_until(lambda: not marked(mark), 30.0), commands_of(marked(mark))


DYING = """
import os, time
from esalign.engines.cluster.ray_workers import connect, one_line
connect("local", 0)
import ray
try:
    ray.get(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
except ray.exceptions.RayError as error:
    print(one_line(error))
time.sleep(5)
"""


def test_of_a_worker_that_dies_only_esalign_tells():
    """Ray prints of each what may have been the cause, in colours and in the midst of the dashboard."""
    told = subprocess.run([sys.executable, "-c", DYING], capture_output=True, text=True, check=True)
    assert told.stdout.count("\n") == 1, told.stdout
    assert "common causes" not in told.stdout
    assert told.stderr == ""


def commands_of(processes):
    return [Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")[:200] for number in processes]
