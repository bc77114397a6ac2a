"""The folder of a run: where it is, and the files that say what was run, on what, and how it ended."""

import fcntl
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esalign.config import Experiment
from esalign.config.reading import leaves, load_config
from esalign.config.sections import Section
from esalign.errors import CheckpointError
from esalign.files import write_atomically, write_json
from esalign.run.checkpoint import Checkpoints
from esalign.run.result import Result
from esalign.run.verify import Verification

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
INPUTS = "inputs.json"
DATA = "data.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
COMPLETIONS = "completions.jsonl"  # of start and result for every test problem, side by side for people to read
RESULT = "result.json"
ADAPTER = "adapter"
MODEL = "model"
PACKAGES = ("esalign", "numpy", "torch", "transformers", "peft", "cma", "nevergrad", "vllm", "llama-cpp-python", "ray")
MAY_CHANGE = (  # keys, and whole sections
    "cluster",
    "scoring.place",
    "scoring.workers",
    "run.name",
    "run.dir",
    "run.generations",
    "run.patience",
    "run.max_minutes",
    "run.evaluate_every",
    "run.max_generated_tokens",
    "run.flat_limit",
    "run.tracker",
    "run.kl_prompts",
    "run.keep_sampled",
    "run.checkpoint_every",
    "run.verify_prompts",
    "backend.self_test",
)
"""Keys that may differ between a run and its continuation."""


@dataclass(frozen=True)
class Outcome:
    """Where a run ended; what it saved, result and verification are None when it was interrupted."""

    folder: Path
    saved: Path | None = None
    result: Result | None = None
    verification: Verification | None = None


def choose_folder(config: Experiment, *, resume: bool) -> Path:
    """Return the folder to run in: a new one, numbered where the name is taken, or the newest of the name to resume.

    Raises:
        CheckpointError: nothing to resume.
    """
    base = Path(config.run.dir) / config.run.name
    taken = [base] if base.exists() else []
    number = 2  # also where the first was renamed or removed
    while (numbered := base.with_name(f"{base.name}-{number}")).exists():
        taken.append(numbered)
        number += 1
    if not resume:
        return numbered if taken else base
    if not taken:
        raise CheckpointError(f"no run '{base}' to resume: leave --resume out, or name the run with run.name=...")
    return taken[-1]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from running in a folder, which is made if need be. A kill ends the claim.

    Raises:
        CheckpointError: another process runs in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is running in '{folder}': wait for its end, or name this run otherwise with "
                "run.name=..."
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def noting_resume(folder: Path) -> Iterator[None]:
    """Note on what ends a run from outside (a full disk, no memory, Ctrl-C) that it can go on, if it can."""
    try:
        yield
    except (OSError, MemoryError, KeyboardInterrupt) as error:
        if Checkpoints(folder / CHECKPOINTS).exist:
            error.add_note("what was written before is whole, so the run goes on with --resume")
        raise


def prepare_folder(folder: Path, config: Section, inputs: Mapping[str, str], *, resume: bool) -> bool:
    """Write what a run consists of; when resuming, refuse another configuration or other inputs.

    Args:
        folder: the run's.
        config: every key with its value.
        inputs: hashes of what else its numbers depend on, as `esalign.run.inputs.hash_inputs` gives them.
        resume: whether the folder holds the run that is to go on.

    Returns:
        False when it is resumed without knowing whether the inputs are the same, as it did not write them down.

    Raises:
        CheckpointError: the run to resume was another one; the message names what differs.
    """
    import yaml

    known = True
    if resume and (folder / CONFIG).exists():
        _refuse_changes(load_config([folder / CONFIG], schema=type(config)), config)
        known = _refuse_other_inputs(folder / INPUTS, inputs)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_json(folder / INPUTS, inputs)
    write_atomically(folder / CONFIG, text.encode())
    write_json(folder / ENVIRONMENT, _environment())
    return known


def write_result(folder: Path, result: Result, verification: Verification | None) -> None:
    """Write how a run ended, for the report and for programs; verification is None until it is known."""
    content = {
        "reason": result.reason,
        "generation": result.generation,
        "share": result.share,
        "sampled_gains": {f"{share:g}": asdict(gain) for share, gain in result.sampled_gains.items()},
        "comparisons": {name: asdict(comparison) for name, comparison in result.comparisons.items()},
        "kl": result.kl,
        "totals": result.totals,
        "verification": asdict(verification) if verification else None,
        "samples": [sample.row() for sample in result.samples],
    }
    write_json(folder / RESULT, content)


def _environment() -> dict[str, Any]:
    """Return the versions and the machine's size, as far as a reader needs them to repeat a run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": versions,
    }


def _refuse_changes(before: Section, now: Section) -> None:
    old, new = leaves(before.model_dump(mode="json")), leaves(now.model_dump(mode="json"))
    differ = {key for key in old.keys() & new.keys() if old[key] != new[key]} | (old.keys() ^ new.keys())
    changed = sorted(key for key in differ if not _may_change(key))
    outer = {key for key in changed if any(other.startswith(f"{key}.") for other in changed)}
    told = [key for key in changed if key not in outer or old.get(key, new.get(key)) is None]  # None: a whole section
    if told:
        key, missing = told[0], "set" if told[0] in outer else "not set"
        was, now_is = (repr(values[key]) if key in values else missing for values in (old, new))
        raise CheckpointError(
            f"cannot resume: {key} was {was} and is now {now_is}; resume with the configuration of the run, or start a "
            "new one without --resume"
        )


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE


def _refuse_other_inputs(file: Path, now: Mapping[str, str]) -> bool:
    """Refuse inputs whose hash differs from that in a file. Returns whether the file could be read."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [part for part, value in now.items() if before.get(part, value) != value]
    except (OSError, ValueError, AttributeError):
        return False
    if changed:
        raise CheckpointError(
            f"cannot resume: {', '.join(changed)} changed since the run began, so its numbers would mean something "
            "else; put back what there was, or start a new run without --resume"
        )
    return True
