"""The tasks, with the problems of each seed, which are posed once, and read from files by every row."""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random

import largest

from esalign.assets import EMBEDDED, adapter_path, asset
from esalign.commands.build import load_splits
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.config.sections import DataSection, Source
from esalign.data.splits import problem_key
from esalign.space import SvdLora
from esalign.types import Example

COUNTDOWN = "{min_numbers: 3, max_numbers: 3, min_value: 1, max_value: 12, min_target: 1, max_target: 99}"
SIZES = {"train": 1200, "validation": 400, "test": 1000}
POSED = 3500
"""Problems of a seed, of which half are for tests."""


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        overrides: laid over quickstart.yaml.
        options: of the rows that are trained otherwise here than on Countdown, by the row's name.
        own: whether its problems and its adapter are made by `largest`; else, by reasoning-gym and the shipped one.
    """

    overrides: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own: bool = False


TASKS = {
    "countdown": Task(),
    "chain-sum": Task(
        (
            "data.options=",
            "data.source=reasoning-gym:chain_sum",
            "data.options={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1}",
            "probe.options=",
            "probe.source=reasoning-gym:countdown",
            f"probe.options={COUNTDOWN}",
        ),
        {"grpo": ("lr=1e-3",)},
    ),
    "largest": Task(("rewards=[{name: exact-match}]", "sampling.max_tokens=12"), own=True),
}


def pose(task: str, seed: int, folder: Path) -> DataSection:
    """Return the section of a configuration that reads a seed's problems, which are posed if need be.

    Half of a task's problems, by a hash, are for tests, whatever the seed: settings that were chosen by validation
    problems of one seed have seen no test problem of another.
    """
    home = folder / "problems" / f"seed{seed}"
    overrides = [*TASKS[task].overrides, f"run.seed={seed}"]
    if not (home / "test.jsonl").exists():
        home.mkdir(parents=True, exist_ok=True)
        if TASKS[task].own:
            _write(home / "all.jsonl", largest.pose(seed))
            overrides += ["data=", f"data.source={home / 'all.jsonl'}"]
        overrides += ["data.validation_size=1", "data.test_size=1", f"data.train_size={POSED}"]
        posed = list(load_splits(load_config([asset("quickstart.yaml")], overrides, schema=RunConfig)).train.examples)
        Random(seed).shuffle(posed)  # a generator poses its commonest problems first
        tests = [example for example in posed if _is_for_tests(example)]
        others = [example for example in posed if not _is_for_tests(example)]
        train, validation = others[: SIZES["train"]], others[SIZES["train"] :]
        for name, examples in {"train": train, "validation": validation, "test": tests}.items():
            if len(examples) < SIZES[name]:
                sys.exit(f"{len(examples)} {name} problems of {task} with seed {seed}, expected {SIZES[name]}")
            _write(home / f"{name}.jsonl", [dict(example.columns) for example in examples[: SIZES[name]]])
    train, validation, test = (Source(source=str(home / f"{name}.jsonl")) for name in SIZES)
    return DataSection(
        source=train.source,
        validation=validation,
        test=test,
        **{f"{name}_size": size for name, size in SIZES.items()},
    )


def _is_for_tests(example: Example) -> bool:
    return sha256(repr(problem_key(example)).encode()).digest()[0] % 2 == 0


def find_adapter(task: str, folder: Path) -> str:
    """Return the adapter that every row of a task starts from, which is trained if need be."""
    if not TASKS[task].own:
        return EMBEDDED
    adapter = folder / "adapter"
    if not adapter.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:  # whole or not at all
            largest.train_adapter(Path(part) / "adapter")
            if not adapter.exists():
                (Path(part) / "adapter").rename(adapter)
    return str(adapter)


def start_of(config: RunConfig) -> SvdLora:
    """Return the space around the adapter that a row starts from."""
    if config.model.adapter is None:
        sys.exit("this row trains an adapter, but model.adapter is empty: leave that override out")
    return SvdLora.from_pretrained(adapter_path(config.model.adapter))


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
