"""What a run began with, as hashes: its problems in their order, the code of its rewards, and its weights."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esalign.assets import adapter_path, model_path
from esalign.config import Experiment
from esalign.config.reading import leaves
from esalign.rewards.code import find_code
from esalign.types import Example

WHOLE = 64 * 2**20  # bytes up to which a file is hashed whole
STRIDE, SAMPLE = 4 * 2**20, 64 * 2**10  # of a larger one: so many bytes of every so many, 1 in 64
_PATHS = re.compile(r"(model|student|teacher)\.(path|adapter)|.*\boptions\..*")
"""Keys whose values may name files on which a run's numbers depend."""


def hash_inputs(config: Experiment, problems: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Return hashes of what a run's numbers depend on beside its configuration.

    Models may be large. Of files above 64 MiB, size, ends and 1 byte in 64 are hashed: 240 MB of 15 GB. So another
    training of a model is noticed; a few numbers changed within a large file may not be.

    Args:
        config: the run's. What its sections name is read from disk, models of the hub from its cache.
        problems: by what they are for, e.g. ``training``, in their order.

    Returns:
        Part, in words -> hash, e.g. ``{"the training problems": "9f86d0..."}``.
    """
    parts = {f"the {name} problems": _hash_examples(examples) for name, examples in problems.items()}
    for reward in (*config.rewards, *(config.probe.rewards if config.probe else ())):
        parts[f"the code of reward {reward.name!r}"] = _hash_files(find_code(reward.name))
    for key, value in leaves(config.model_dump(mode="json")).items():
        if isinstance(value, str) and _PATHS.fullmatch(key):
            files = find_files(adapter_path(value) if key.endswith("adapter") else model_path(value))
            if files:
                parts[f"{key} '{value}'"] = _hash_files(files)
    return parts


def _hash_examples(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(_as_json([example.prompt, example.columns])).encode())
    return digest.hexdigest()


def _as_json(value: Any) -> Any:
    """Return what stands for a value: equal ones have equal JSON; of objects without a text of their own, the type."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return sorted([str(key), _as_json(inner)] for key, inner in value.items())
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if hasattr(value, "tolist"):  # an array
        return _as_json(value.tolist())
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text


def find_files(path: str) -> list[Path]:
    """Return the files of a model or an adapter, local or in the hub's cache, or a file; none where there are none."""
    from huggingface_hub import try_to_load_from_cache

    place, configs = Path(path).expanduser(), ("config.json", "adapter_config.json")
    if not place.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        cached = (try_to_load_from_cache(path, name) for name in configs)
        place = next((Path(found).parent for found in cached if isinstance(found, str)), place)
    if place.is_dir() and any((place / name).exists() for name in configs):
        return sorted(file for file in place.iterdir() if file.is_file() and file.suffix != ".md")
    return [place] if place.is_file() else []


def _hash_files(files: Iterable[Path]) -> str:
    """Return the hash of names and contents; of large files, of samples of the content."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            for start in (*range(0, size - SAMPLE, STRIDE), size - SAMPLE):
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()
