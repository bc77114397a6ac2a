"""Problems that reasoning-gym generates, kept with all that its verifiers need."""

import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esalign.data.rows import Row
from esalign.errors import DataError
from esalign.registry import did_you_mean
from esalign.seeds import Use, derive
from esalign.space.imports import import_reasoning_gym

PREFIX = "reasoning-gym:"

TRIAL = 64
"""Problems whose generation is timed."""

WORTH_PROCESSES = 8.0
"""Seconds of generation from which it pays to start processes; each imports reasoning-gym, which takes about three."""

_MAIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from esalign.data.gym import generate_apart; generate_apart()"
)


def generate_rows(source: str, *, options: Mapping[str, Any], size: int, seed: int, start: int = 0) -> list[Row]:
    """Return a range of the endless series of problems that a task and a seed define.

    Some tasks take long over a problem; when many are asked for, all cores work on them.

    Args:
        source: ``reasoning-gym:<task>``.
        options: the task's configuration.
        size: number of problems.
        seed: decides the series.
        start: index of the first problem.

    Returns:
        Rows with the columns question, answer and metadata, which are reasoning-gym's entries.

    Raises:
        DataError: an unknown task or option, or a configuration that the task refuses.
    """
    stop = start + size
    task = open_task(source, options=options, size=stop, seed=seed)
    begun = time.monotonic()
    rows = _pose(task, source, options, range(start, min(start + TRIAL, stop)))
    left = (time.monotonic() - begun) * (size - len(rows)) / max(len(rows), 1)
    if left < WORTH_PROCESSES:
        return rows + _pose(task, source, options, range(start + len(rows), stop))
    rest = range(start + len(rows), stop)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bounds = np.linspace(rest.start, stop, cores + 1).astype(int).tolist()
    apart = _generate_apart(source, options, seed, list(itertools.pairwise(bounds)))
    return rows + (_pose(task, source, options, rest) if apart is None else apart)


def _pose(task: Any, source: str, options: Mapping[str, Any], indices: range) -> list[Row]:
    try:
        return [task[index] for index in indices]
    except Exception as error:  # a task may fail in any way when its configuration leaves it no problem to pose
        raise DataError(f"'{source}' cannot generate problems with {dict(options)}: {error}") from error


def _generate_apart(
    source: str, options: Mapping[str, Any], seed: int, ranges: Sequence[tuple[int, int]]
) -> list[Row] | None:
    """Generate ranges of problems in fresh interpreters, one each: forks of a process with torch's threads may hang.

    Returns:
        All rows in order, or None when a process failed: what fails there fails here too, and says why.
    """
    command = [sys.executable, "-W", "ignore", "-c", _MAIN, json.dumps(sys.path)]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null) for _ in ranges]  # noqa: S603  (ours)
    for process, bounds in zip(processes, ranges, strict=True):
        if process.stdin is not None:
            pickle.dump((source, dict(options), seed, bounds), process.stdin)
            process.stdin.flush()
    results = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return None
    return [row for result in results for row in pickle.loads(result)]  # noqa: S301  (written by our own children)


def generate_apart() -> None:
    """Generate what standard input says, and write the rows to standard output."""
    source, options, seed, (start, stop) = pickle.load(sys.stdin.buffer)  # noqa: S301  (written by our own parent)
    output, sys.stdout = sys.stdout.buffer, sys.stderr  # a task that prints must not print into the rows
    task = open_task(source, options=options, size=stop, seed=seed)
    pickle.dump(_pose(task, source, options, range(start, stop)), output)


def open_task(source: str, *, options: Mapping[str, Any], size: int, seed: int) -> Any:
    """Return reasoning-gym's data set of a task."""
    reasoning_gym = import_reasoning_gym()
    datasets = reasoning_gym.factory.DATASETS
    name = source.removeprefix(PREFIX)
    if name not in datasets:
        raise DataError(f"reasoning-gym has no task {name!r}{did_you_mean(name, datasets)}")
    known = [key for key in datasets[name][1].__dataclass_fields__ if key not in ("seed", "size")]
    for option in options:
        if option in ("seed", "size"):
            raise DataError(f"data.options.{option} of '{source}': the sizes and the seed of the run decide it")
        if option not in known:
            hint = did_you_mean(option, known)
            raise DataError(f"'{source}' has no option {option!r}{hint}; options: {', '.join(known)}")
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=_spread(seed), **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"'{source}' refuses the options {dict(options)}: {error}") from error


def _spread(seed: int) -> int:
    """Return a seed far from those of its neighbours: reasoning-gym seeds problem i with seed + i.

    Seeds 0 and 1 themselves would share all problems but one. 31 bits, as some tasks hand the sum to numpy.
    """
    return derive(seed, Use.TASKS) >> 1
