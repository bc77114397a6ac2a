"""Writing what a run found in other forms."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from esalign.assets import model_path
from esalign.errors import CheckpointError
from esalign.registry import FORMATS, find
from esalign.run.folder import ADAPTER, MODEL, read_base
from esalign.run.merge import merge_adapter


def export_run(folder: Path, *, merged: Path | None, gguf: Path | None, adapter: Path | None) -> Iterator[str]:
    """Write a run's adapter in each form that has a path, and yield a line about each.

    Raises:
        CheckpointError: the run is not finished, or what it found is no adapter.
    """
    base = read_base(folder)
    source = folder / ADAPTER
    if (folder / MODEL).is_dir():
        raise CheckpointError(f"run '{folder}' trained all weights: '{folder / MODEL}' is the whole model already")
    if not source.is_dir():
        raise CheckpointError(f"run '{folder}' has no adapter yet: finish it with --resume")
    if adapter is not None:
        shutil.copytree(source, adapter, dirs_exist_ok=True)
        yield f"PEFT adapter: {adapter}"
    if merged is not None:
        difference = merge_adapter(model_path(base), source, merged)
        yield f"merged model: {merged} (logits differ from base + adapter by at most {difference:.1e})"
    if gguf is not None:
        yield find(FORMATS, "gguf").export_adapter(source, model_path(base), gguf)
