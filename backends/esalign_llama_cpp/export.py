"""Writing an adapter for llama.cpp, and checking it there."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from esalign.engines.loading import load_model
from esalign.errors import AdapterError
from esalign.space import SvdLora
from esalign.space.adapter import Adapter, read_adapter, write_adapter
from esalign.types import Array
from esalign_llama_cpp.context import Context, Settings
from esalign_llama_cpp.library import load_library
from esalign_llama_cpp.lora import write_gguf_adapter
from esalign_llama_cpp.model import GgufModel
from esalign_llama_cpp.options import default_threads
from esalign_llama_cpp.sources import find_source
from esalign_llama_cpp.switch import free_adapter, load_adapter, make_switch

NUM_TOKENS = 32
TOLERANCES = {"f32": 1e-3, "f16": 5e-2, "bf16": 2e-1}
"""How far logits may differ, as a share of how far the adapter moves them, for weights of a type."""


def export_gguf(adapter: str | Path | Adapter, model: str | Path, out: str | Path) -> str:
    """Write an adapter as a LoRA GGUF, load it in llama.cpp, and compare what it does there.

    With a Hugging Face model, llama.cpp's logits are compared with those of transformers + peft. With a GGUF file there
    are none; then the file is compared with the adapter's factors as the engine writes them into llama.cpp's memory.

    Args:
        adapter: a PEFT folder, or what was read from one.
        model: the base model: a Hugging Face folder or id, or a GGUF file.
        out: the file to write.

    Returns:
        A line that says what was written and how it was checked.

    Raises:
        AdapterError: the adapter cannot be written, or does something else in llama.cpp.
        BackendError: the model cannot be loaded.
        MissingPackageError: llama-cpp-python is not installed.
    """
    library = load_library()
    content = adapter if isinstance(adapter, Adapter) else read_adapter(adapter)
    source = find_source(model, dtype="auto", quantization=None, cache=None, threads=default_threads())
    try:
        loaded = GgufModel(library, source.gguf)
        try:
            path = write_gguf_adapter(content, Path(out), loaded.architecture, loaded.heads)
            if source.folder is None:
                return _check_against_engine(loaded, content, path)
            return _check_against_peft(loaded, content, path, source.folder)
        finally:
            loaded.close()
    finally:
        source.close()


def _check_against_peft(model: GgufModel, adapter: Adapter, path: Path, folder: Path) -> str:
    """Compare what the adapter does to the logits in llama.cpp and in transformers + peft."""
    ids = _some_ids(model)
    bare, adapted = _logits(model, None, ids), _logits(model, path, ids)
    expected = _peft_logits(folder, adapter, ids)
    kind = {"0": "f32", "1": "f16"}.get(model.metadata("general.file_type", ""), "bf16")
    return _report(
        path, bare=bare, adapted=adapted, expected=expected, oracle="transformers + peft", tolerance=TOLERANCES[kind]
    )


def _check_against_engine(model: GgufModel, adapter: Adapter, path: Path) -> str:
    """Compare what the adapter does as a file and as factors."""
    ids = _some_ids(model)
    bare, adapted = _logits(model, None, ids), _logits(model, path, ids)
    # A layer whose update is zero, as all are at the start of a search from the model alone, has nothing to decompose.
    moved = replace(adapter, modules=tuple(module for module in adapter.modules if module.A.any() and module.B.any()))
    expected = _factored_logits(model, SvdLora(moved), ids) if moved.modules else bare
    return _report(
        path,
        bare=bare,
        adapted=adapted,
        expected=expected,
        oracle="the engine's own factors",
        tolerance=TOLERANCES["f16"],
        floor=_rms(_nudged_logits(model, adapter, ids) - adapted),
    )


def _factored_logits(model: GgufModel, space: SvdLora, ids: list[int]) -> Array:
    """Return the logits of a space's start, whose factors are written into llama.cpp's memory, (tokens, vocab)."""
    values = [(a[0], b[0]) for a, b in space.singular_values(np.zeros((1, space.dim)))]
    context = _make_context(model)
    switch = make_switch(space, model, "auto")
    try:
        switch.select(values, context)
        return _read_logits(context, ids)
    finally:
        context.close()
        switch.close()


def _nudged_logits(model: GgufModel, adapter: Adapter, ids: list[int]) -> Array:
    """Return the logits of an adapter that is stronger by one part in 100,000, (tokens, vocab)."""
    modules = tuple(replace(module, B=module.B * np.float32(1 + 1e-5)) for module in adapter.modules)
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "adapter.gguf"
        write_gguf_adapter(replace(adapter, modules=modules), file, model.architecture, model.heads)
        return _logits(model, file, ids)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _report(
    path: Path, *, bare: Array, adapted: Array, expected: Array, oracle: str, tolerance: float, floor: float = 0.0
) -> str:
    """Return the line on an export that is right.

    Differences are root mean squares. The floor is what the same adapter gives when it is changed by next to nothing:
    a quantised model rounds its activations too, so that no two ways to the same sum end in the same logits.

    Raises:
        AdapterError: the logits differ by too much of what the adapter changes.
    """
    difference, effect = _rms(adapted - expected), _rms(expected - bare)
    if not difference <= max(tolerance * max(effect, 1.0), min(2 * floor, effect / 2)):
        path.unlink()
        raise AdapterError(
            f"the adapter gives other logits in llama.cpp than in {oracle}: they differ by {difference:.2g}, where the "
            f"adapter moves them by {effect:.2g}; no file was left, please report a bug"
        )
    return (
        f"llama.cpp adapter: {path} (logits differ from {oracle} by {difference:.1e}, "
        f"the adapter moves them by {effect:.1e})"
    )


def _some_ids(model: GgufModel) -> list[int]:
    return np.random.default_rng(0).integers(0, model.vocab_size, size=NUM_TOKENS).tolist()


def _make_context(model: GgufModel) -> Context:
    settings = Settings(default_threads(), NUM_TOKENS, NUM_TOKENS, "f32", flash_attention=False, unified=True)
    return Context(model, settings, sequences=1, tokens=NUM_TOKENS)


def _logits(model: GgufModel, adapter: Path | None, ids: list[int]) -> Array:
    """Return llama.cpp's logits, shape (tokens, vocab)."""
    context = _make_context(model)
    handle: Any = None
    try:
        if adapter is not None:
            handle = load_adapter(model, adapter)
            context.use(handle)
        return _read_logits(context, ids)
    finally:
        context.close()
        if handle is not None:
            free_adapter(model, handle)


def _read_logits(context: Context, ids: list[int]) -> Array:
    """Return the logits after each of a few tokens, shape (tokens, vocab), from an empty cache."""
    context.clear()
    count = len(ids)
    context.token[:count] = ids
    context.position[:count] = np.arange(count)
    context.sequence[:count] = 0
    context.wanted[:count] = 1
    logits = context.decode(count).copy()
    context.clear()
    return logits


def _peft_logits(folder: Path, adapter: Adapter, ids: list[int]) -> Array:
    """Return the logits of transformers + peft, float32, shape (tokens, vocab)."""
    import torch

    with tempfile.TemporaryDirectory() as home:
        adapted = str(write_adapter(adapter, home))
        model = load_model("model", str(folder), adapted, dtype="float32", device="cpu").model
    with torch.inference_mode():
        logits: Array = model(torch.tensor([ids])).logits[0].numpy()
    return logits
