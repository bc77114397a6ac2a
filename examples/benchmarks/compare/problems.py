"""The problems of a task and a seed, posed once by reasoning-gym, and read from files by every row."""

import json
from pathlib import Path

from esalign.assets import asset
from esalign.commands.build import load_splits
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.config.sections import DataSection, Source

SPLITS = ("train", "validation", "test")
TASKS = {
    "countdown": (),
    "chain-sum": (
        "data.options=",
        "data.source=reasoning-gym:chain_sum",
        "data.options={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1}",
        "probe.options=",
        "probe.source=reasoning-gym:countdown",
        "probe.options={min_numbers: 3, max_numbers: 3, min_value: 1, max_value: 12, min_target: 1, max_target: 99}",
    ),
}
"""What is laid over quickstart.yaml, whose task is the first."""


def pose(task: str, seed: int, folder: Path) -> DataSection:
    """Return the section of a configuration that reads a seed's problems, which are posed if need be."""
    home = folder / "problems" / f"seed{seed}"
    posed = load_config([asset("quickstart.yaml")], [*TASKS[task], f"run.seed={seed}"], schema=RunConfig)
    if not (home / f"{SPLITS[-1]}.jsonl").exists():
        home.mkdir(parents=True, exist_ok=True)
        splits = load_splits(posed)
        for name in SPLITS:
            rows = [dict(example.columns) for example in getattr(splits, name).examples]
            (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train, validation, test = (Source(source=str(home / f"{name}.jsonl")) for name in SPLITS)
    data = posed.data
    return DataSection(
        source=train.source,
        train_size=data.train_size,
        validation=validation,
        validation_size=data.validation_size,
        test=test,
        test_size=data.test_size,
    )
