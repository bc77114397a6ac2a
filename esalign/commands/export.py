"""Writing what a run found in other forms."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from esalign.assets import model_path
from esalign.config.reading import read_yaml
from esalign.engines.loading import load_model
from esalign.errors import AdapterError, CheckpointError
from esalign.registry import FORMATS, find
from esalign.run.folder import ADAPTER, CONFIG, MODEL
from esalign.run.reference import find_obstacle


def export_run(folder: Path, *, merged: Path | None, gguf: Path | None, adapter: Path | None) -> Iterator[str]:
    """Write a run's adapter in each form that has a path, and yield a line about each.

    Raises:
        CheckpointError: the run is not finished, or what it found is no adapter.
    """
    base = _read_base(folder)
    source = folder / ADAPTER
    if (folder / MODEL).is_dir():
        raise CheckpointError(f"run '{folder}' trained all weights: '{folder / MODEL}' is the whole model already")
    if not source.is_dir():
        raise CheckpointError(f"run '{folder}' has no adapter yet: finish it with --resume")
    if adapter is not None:
        shutil.copytree(source, adapter, dirs_exist_ok=True)
        yield f"PEFT adapter: {adapter}"
    if merged is not None:
        difference = _merge(model_path(base), source, merged)
        yield f"merged model: {merged} (logits differ from base + adapter by at most {difference:.1e})"
    if gguf is not None:
        yield find(FORMATS, "gguf").export_adapter(source, model_path(base), gguf)


def _read_base(folder: Path) -> str:
    """Return the base model of a run's adapter: ``model.path`` of its configuration, or ``student.path``.

    Raises:
        CheckpointError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"'{folder}' is not a run: it holds no {CONFIG}")
    content = read_yaml(folder / CONFIG)
    try:
        return str((content.get("model") or content["student"])["path"])
    except (KeyError, TypeError):
        raise CheckpointError(f"'{folder / CONFIG}' is not a run's: it names no model.path or student.path") from None


def _merge(model: str, adapter: Path, out: Path) -> float:
    """Write the base model with the adapter folded into its weights, and its tokenizer.

    Returns:
        The largest difference of logits between the merged model, read back, and base + adapter, on a fixed prompt.

    Raises:
        AdapterError: the base model is quantised, or none of transformers'.
    """
    import torch

    obstacle = find_obstacle(model)
    if obstacle:
        raise AdapterError(f"cannot merge into '{model}': {obstacle}; export the adapter by itself")
    loaded = load_model("model", model, str(adapter))
    with_adapter = loaded.model
    vocabulary = with_adapter.get_input_embeddings().num_embeddings
    ids = torch.arange(32, device=with_adapter.device).remainder(vocabulary)[None]
    with torch.inference_mode():
        expected = with_adapter(ids).logits
    merged = with_adapter.merge_and_unload()
    merged.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    again = load_model("model", str(out), dtype=str(merged.dtype).removeprefix("torch.")).model
    with torch.inference_mode():
        return float((again(ids).logits - expected).abs().max())
