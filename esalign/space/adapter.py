"""Read and write PEFT LoRA adapter folders, with numpy alone."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import AdapterError, EsalignWarning
from esalign.files import write_atomically
from esalign.space.adapter_config import CONFIG_FILE, kept, read_config, scaling_of
from esalign.space.hub import find_folder
from esalign.types import Array

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight$")
_WRAPPED = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)|^module(?=\.)")
_EXPERTS = re.compile(r"\.experts(\.|$)")


@dataclass(frozen=True)
class LoraModule:
    """The two factors of one adapted linear layer, whose update is ``scaling * B @ A``.

    Args:
        name: the layer's name in the base model, e.g. ``model.layers.0.self_attn.q_proj``.
        A: shape (rank, in), float32.
        B: shape (out, rank), float32.
        scaling: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    """

    name: str
    A: Array
    B: Array
    scaling: float

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return len(self.A)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as it lies in a folder: its configuration and its modules, sorted by layer."""

    config: Mapping[str, Any]
    modules: tuple[LoraModule, ...]


def read_adapter(folder: str | Path) -> Adapter:
    """Read a PEFT LoRA adapter from a local folder, or from the Hugging Face hub by its id.

    Raises:
        AdapterError: a file is missing or broken, or the adapter is of a kind that has no factors to search over.
    """
    path = find_folder(folder, "adapter", (CONFIG_FILE, WEIGHTS_FILE), AdapterError)
    config = read_config(path)
    factors = _sort_tensors(_read_tensors(path), path)
    modules = tuple(_make_module(name, factors[name], config, path) for name in sorted(factors, key=layer_order))
    return Adapter(config, modules)


def write_adapter(adapter: Adapter, folder: str | Path) -> Path:
    """Write a PEFT LoRA adapter, float32, each file atomically. Returns the folder."""
    from safetensors.numpy import save

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module in adapter.modules:
        for factor, values in (("A", module.A), ("B", module.B)):
            tensors[f"{PREFIX}{module.name}.lora_{factor}.weight"] = np.ascontiguousarray(values, dtype=np.float32)
    ordered = dict(sorted(kept(adapter.config).items()))  # within patterns the order counts: the first match wins
    config = json.dumps(ordered, indent=2) + "\n"
    write_atomically(path / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
    write_atomically(path / CONFIG_FILE, config.encode())
    return path


def _sort_tensors(tensors: Mapping[str, Array], path: Path) -> dict[str, dict[str, Array]]:
    """Return {layer: {factor: values}}. Names that a wrapper of the model or a raw state has changed are mended.

    Raises:
        AdapterError: other tensors, none, or names that would be those of two adapters.
    """
    factors: dict[str, dict[str, Array]] = {}
    mended, adapters = [], set()
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.match(name)
        if match is None:
            raise AdapterError(
                f"adapter '{path}' holds the tensor {name!r}, expected only lora_A and lora_B weights of linear "
                "layers: train it without embeddings, DoRA and modules_to_save"
            )
        module, factor = _plain_name(match["module"]), match["factor"]
        adapters.add(match["adapter"])
        if name != f"{PREFIX}{module}.lora_{factor}.weight":
            mended.append(f"{name!r} as {module!r}")
        if factor in factors.setdefault(module, {}) or len(adapters) > 1:
            raise AdapterError(f"adapter '{path}' holds two adapters: {name!r} is a second lora_{factor} of {module!r}")
        factors[module][factor] = tensor
    if not factors:
        raise AdapterError(f"adapter '{path}' holds no lora_A and lora_B tensors: is it a LoRA adapter?")
    if mended:
        warnings.warn(
            f"adapter '{path}' has {len(mended)} tensors under names that peft would not find; {mended[0]} is read",
            EsalignWarning,
            stacklevel=3,
        )
    return factors


def _plain_name(name: str) -> str:
    """Return a layer's name in the base model: without what torch.compile, FSDP or a second peft put around it.

    >>> _plain_name("base_model.model.base_model.model._orig_mod.model.layers.0.self_attn.q_proj")
    'model.layers.0.self_attn.q_proj'
    """
    name = _WRAPPED.sub("", name).lstrip(".")
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    return name


def _read_tensors(path: Path) -> dict[str, Array]:
    """Read all tensors as float32. safetensors' numpy reader knows no bfloat16, so its bits are widened here."""
    file = path / WEIGHTS_FILE
    if not file.is_file():
        hint = (
            " (pickled adapters are refused: save it as safetensors)" if (path / "adapter_model.bin").exists() else ""
        )
        raise AdapterError(f"adapter '{path}' has no {WEIGHTS_FILE}{hint}")
    try:
        return dict(_parse_safetensors(file.read_bytes()))
    except OSError as error:
        raise AdapterError(f"'{file}' cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise AdapterError(f"'{file}' is broken ({error}): save the adapter again") from error


def _parse_safetensors(content: bytes) -> Iterator[tuple[str, Array]]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    for name, tensor in tensors:
        if tensor["dtype"] == "BF16":
            values = (np.frombuffer(tensor["data"], dtype="<u2").astype("<u4") << 16).view("<f4")
        elif tensor["dtype"] in kinds:
            values = np.frombuffer(tensor["data"], dtype=kinds[tensor["dtype"]]).astype(np.float32)
        else:
            raise ValueError(f"tensor {name!r} is of type {tensor['dtype']}, expected F32, F16 or BF16")
        yield name, values.reshape(tensor["shape"])


def _make_module(name: str, factors: Mapping[str, Array], config: Mapping[str, Any], path: Path) -> LoraModule:
    if "embed_tokens" in name or name.endswith(("lm_head", "wte", "wpe")):
        raise AdapterError(f"adapter '{path}' adapts the embedding {name!r}, which esalign does not support")
    if _EXPERTS.search(name):
        raise AdapterError(
            f"adapter '{path}' adapts the expert {name!r}; transformers holds all experts of a layer as one matrix, "
            "which esalign does not adapt: train it on the layers that see all tokens, such as those of attention"
        )
    if set(factors) != {"A", "B"}:
        raise AdapterError(f"adapter '{path}' has only lora_{next(iter(factors))} for {name!r}, expected A and B")
    A, B = factors["A"], factors["B"]
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or 0 in (*A.shape, *B.shape):
        raise AdapterError(
            f"adapter '{path}' has A {A.shape} and B {B.shape} for {name!r}, expected (rank, in) and (out, rank)"
        )
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise AdapterError(f"adapter '{path}' holds numbers that are not finite in {name!r}: train it again")
    return LoraModule(name, A, B, scaling_of(name, len(A), config, path))


def layer_order(name: str) -> list[Any]:
    """Sort layer 10 after layer 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]
