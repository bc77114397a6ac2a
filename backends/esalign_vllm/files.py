"""Candidates as adapter folders in memory, for `files` mode, which needs nothing but vLLM's public LoRA requests."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from esalign.protocols import Space
from esalign.space.adapter import Adapter, write_adapter
from esalign.space.adapter_config import plain_config
from esalign.types import Array

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (each folder in it is made by mkdtemp, for the user alone)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Make a folder in memory, where there is such a file system, and remove it in the end."""
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="esalign-vllm-", dir=parent) as folder:
        yield Path(folder)


def write_candidate(space: Space, vector: Array, folder: Path) -> Path:
    """Write a candidate's adapter so that vLLM reads it right, whatever the start looked like.

    vLLM ignores patterns of ranks and alphas, so each layer's scaling is folded into its B, and the configuration says
    nothing but the highest rank with a scaling of 1.
    """
    folded = space.fold(vector)
    modules = tuple(replace(module, B=module.scaling * module.B, scaling=1.0) for module in folded.modules)
    rank = max(module.rank for module in modules)
    names = sorted({module.name.rpartition(".")[2] for module in modules})
    return write_adapter(Adapter(plain_config(None, names, rank=rank, alpha=rank), modules), folder)
