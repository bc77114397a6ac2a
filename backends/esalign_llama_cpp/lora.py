"""LoRA adapters in GGUF files: reading and writing."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import AdapterError, MissingPackageError
from esalign.space.adapter import Adapter, LoraModule
from esalign.space.adapter_config import plain_config
from esalign.types import Array
from esalign_llama_cpp.names import (
    ARCHITECTURES,
    heads_to_permute,
    linear_from_gguf,
    linear_to_gguf,
    permute,
    unpermute,
)

SUFFIXES = (".lora_a", ".lora_b")
ALPHA = "adapter.lora.alpha"


def write_lora_gguf(path: Path, architecture: str, factors: Mapping[str, tuple[Array, Array]], *, alpha: float) -> None:
    """Write a LoRA GGUF, float32.

    Args:
        path: the file.
        architecture: of the base model.
        factors: (A (rank, in), B (out, rank)) by the name of the base model's tensor, rows ordered as there.
        alpha: the update is ``alpha / rank * B @ A``, or ``B @ A`` with alpha 0.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    writer = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for name, pair in factors.items():
        for suffix, factor in zip(SUFFIXES, pair, strict=True):
            writer.add_tensor(name + suffix, np.ascontiguousarray(factor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_adapter(adapter: Adapter, path: Path, architecture: str, heads: tuple[int, int]) -> Path:
    """Write an adapter for llama.cpp.

    The file knows one alpha for all layers, and divides it by each layer's rank. Where a layer's scaling is another
    one, its B makes up for it.

    Args:
        adapter: the adapter.
        path: the file to write.
        architecture: of the base model's GGUF file.
        heads: attention heads of the base model, and those of keys and values.
    """
    alphas = Counter(module.scaling * module.rank for module in adapter.modules)
    alpha = float(np.float32(alphas.most_common(1)[0][0]))
    factors = {}
    for module in adapter.modules:
        rows = permute(module.B, heads_to_permute(module.name, architecture, heads))
        factors[linear_to_gguf(module.name, architecture) + ".weight"] = (
            module.A,
            rows * (module.scaling * module.rank / alpha),
        )
    write_lora_gguf(path, architecture, factors, alpha=alpha)
    return path


def read_gguf_adapter(path: str | Path, model: str | Path) -> Adapter:
    """Read a LoRA GGUF as an adapter, so that a search can start from it without any Hugging Face model.

    Args:
        path: the adapter's GGUF file.
        model: the base model's GGUF file, whose header says how the rows of q and k are ordered.

    Raises:
        AdapterError: a file is broken or of another kind, or the two are of different architectures.
        MissingPackageError: gguf is not installed.
    """
    reader = open_gguf(path)
    architecture = _text(reader, "general.architecture")
    if _text(reader, "general.type") != "adapter" or _text(reader, "adapter.type") != "lora":
        raise AdapterError(f"'{path}' is not a LoRA adapter (general.type is {_text(reader, 'general.type')!r})")
    if architecture not in ARCHITECTURES:
        raise AdapterError(f"'{path}' is for architecture {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    heads = _read_heads(model, architecture)
    alpha = reader.get_field(ALPHA)
    factors = _read_factors(reader, path)
    modules = tuple(
        _make_module(name, factors[name], architecture, heads, 0.0 if alpha is None else float(alpha.contents()))
        for name in factors
    )
    modules = tuple(sorted(modules, key=_layer_order))
    return Adapter(_peft_config(modules, str(model)), modules)


def open_gguf(path: str | Path) -> Any:
    """Return gguf's reader of a file.

    Raises:
        AdapterError: the file is missing or broken.
        MissingPackageError: gguf is not installed.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise MissingPackageError("backend 'llama-cpp'", "gguf", "llama-cpp") from None
    try:
        return GGUFReader(path)
    except OSError as error:
        raise AdapterError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise AdapterError(f"'{path}' is no complete GGUF file: {error}") from error


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())


def _read_heads(model: str | Path, architecture: str) -> tuple[int, int]:
    if not Path(model).is_file():
        raise AdapterError(f"an adapter in a GGUF file goes with a model in a GGUF file, and '{model}' is no file")
    found, heads = read_architecture(open_gguf(model), model)
    if found != architecture:
        raise AdapterError(
            f"the adapter is for architecture {architecture!r}, but the model '{model}' is of {found!r}: "
            "use the model that the adapter was trained on"
        )
    return heads


def read_architecture(reader: Any, path: str | Path) -> tuple[str, tuple[int, int]]:
    """Return a model's architecture, and its attention heads and those of keys and values.

    Raises:
        AdapterError: the file is no language model, or of an architecture whose layers are not known here.
    """
    architecture = _text(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise AdapterError(
            f"'{path}' is of architecture {architecture!r}, whose layers are not known here; "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    heads = reader.get_field(f"{architecture}.attention.head_count")
    if heads is None:
        raise AdapterError(f"'{path}' has no head count in its header: is it a complete language model?")
    kv_heads = reader.get_field(f"{architecture}.attention.head_count_kv")
    return architecture, (int(heads.contents()), int((kv_heads or heads).contents()))


def _read_factors(reader: Any, path: str | Path) -> dict[str, dict[str, Array]]:
    """Return {layer: {suffix: factor}}, whatever type they are stored in."""
    from gguf import dequantize

    factors: dict[str, dict[str, Array]] = {}
    for tensor in reader.tensors:
        name, dot, suffix = tensor.name.rpartition(".")
        if dot + suffix not in SUFFIXES:
            raise AdapterError(f"'{path}' holds the tensor {tensor.name!r}, expected only lora_a and lora_b")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        factors.setdefault(name.removesuffix(".weight"), {})[dot + suffix] = values
    if not factors:
        raise AdapterError(f"'{path}' holds no lora_a and lora_b tensors")
    for name, pair in factors.items():
        if set(pair) != set(SUFFIXES):
            raise AdapterError(f"'{path}' has only {next(iter(pair))} for {name!r}, expected lora_a and lora_b")
        a, b = (pair[suffix] for suffix in SUFFIXES)
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise AdapterError(f"'{path}' has broken factors for {name!r}, of shapes {a.shape} and {b.shape}")
    return factors


def _make_module(
    name: str, pair: Mapping[str, Array], architecture: str, heads: tuple[int, int], alpha: float
) -> LoraModule:
    layer = linear_from_gguf(name, architecture)
    A, B = (pair[suffix] for suffix in SUFFIXES)
    B = unpermute(B, heads_to_permute(layer, architecture, heads))
    return LoraModule(layer, np.array(A), np.array(B), alpha / len(A) if alpha else 1.0)


def _layer_order(module: LoraModule) -> tuple[int, str]:
    """Sort as PEFT folders are read, by layer and then by name: a search vector means the same for both."""
    _, _, number, name = module.name.split(".", 3)
    return int(number), name


def _peft_config(modules: tuple[LoraModule, ...], model: str) -> dict[str, Any]:
    """Return the PEFT configuration that says the same as the file."""
    ranks = Counter(module.rank for module in modules)
    rank = ranks.most_common(1)[0][0]
    alphas = {module.name: module.scaling * module.rank for module in modules}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    names = sorted({module.name.rpartition(".")[2] for module in modules})
    return {
        **plain_config(model, names, rank=rank, alpha=alpha),
        "rank_pattern": {module.name: module.rank for module in modules if module.rank != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }
