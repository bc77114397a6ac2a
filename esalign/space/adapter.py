"""Read and write PEFT LoRA adapter folders, with numpy alone."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import AdapterError
from esalign.files import write_atomically
from esalign.types import Array

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "layer replication",
    "target_parameters": "target parameters",
    "megatron_config": "Megatron layers",
}
BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")
_TENSOR_NAME = re.compile(rf"^{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")


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
    path = _locate(folder)
    config = _read_config(path)
    _refuse_unsupported(config, path)
    tensors = _read_tensors(path)
    factors: dict[str, dict[str, Array]] = {}
    for tensor_name, tensor in tensors.items():
        match = _TENSOR_NAME.match(tensor_name)
        if match is None:
            raise AdapterError(
                f"adapter '{path}' holds the tensor {tensor_name!r}, expected only lora_A and lora_B weights of linear "
                "layers: train it without embeddings, DoRA and modules_to_save"
            )
        factors.setdefault(match["module"], {})[match["factor"]] = tensor
    if not factors:
        raise AdapterError(f"adapter '{path}' holds no lora_A and lora_B tensors: is it a LoRA adapter?")
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
    config = json.dumps({**adapter.config, "inference_mode": True}, indent=2, sort_keys=True) + "\n"
    write_atomically(path / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
    write_atomically(path / CONFIG_FILE, config.encode())
    return path


def _locate(folder: str | Path) -> Path:
    """Return the local folder of an adapter, fetching it from the hub when it is not a local one."""
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        raise AdapterError(f"adapter '{folder}' is not a folder: expected a PEFT adapter with {CONFIG_FILE}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"adapter '{folder}' is neither a local folder nor a readable repository of the Hugging Face hub "
            f"({type(error).__name__}): check the path"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"adapter '{path}' has no {CONFIG_FILE}: is it a PEFT adapter?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"'{file}' is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"'{file}' holds {type(config).__name__}, expected a JSON object")
    return config


def _refuse_unsupported(config: Mapping[str, Any], path: Path) -> None:
    """Refuse by name every variant whose update is not ``scaling * B @ A`` of linear layers and nothing else."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"adapter '{path}' is of peft_type {kind!r}, expected 'LORA'")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise AdapterError(f"adapter '{path}' trains biases, which esalign does not support: train it with bias='none'")
    for key, label in UNSUPPORTED.items():
        if config.get(key):
            raise AdapterError(f"adapter '{path}' uses {label} ({key}), which esalign does not support")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_STARTS):
        raise AdapterError(
            f"adapter '{path}' was started with init_lora_weights={start!r}, which changes the base model: convert it "
            "to a plain LoRA (PEFT: save_pretrained(path_initial_model_for_weight_conversion=...))"
        )


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
    if set(factors) != {"A", "B"}:
        raise AdapterError(f"adapter '{path}' has only lora_{next(iter(factors))} for {name!r}, expected A and B")
    A, B = factors["A"], factors["B"]
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
        raise AdapterError(
            f"adapter '{path}' has A {A.shape} and B {B.shape} for {name!r}, expected (rank, in) and (out, rank)"
        )
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise AdapterError(f"adapter '{path}' holds numbers that are not finite in {name!r}: train it again")
    rank = len(A)
    configured = _from_pattern(config.get("rank_pattern"), name, config.get("r"), path)
    if configured != rank:
        raise AdapterError(f"adapter '{path}' says rank {configured} for {name!r}, but its factors have rank {rank}")
    alpha = _from_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8), path)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"adapter '{path}' has lora_alpha {alpha!r} for {name!r}, expected a number")
    return LoraModule(name, A, B, alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _from_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any, path: Path) -> Any:
    """Return the value for a module as PEFT does: the first key that matches the end of its name, as an expression."""
    for key, value in (pattern or {}).items():
        try:
            found = re.match(rf"(.*\.)?({key})$", name)
        except re.error as error:
            raise AdapterError(f"adapter '{path}' has a pattern {key!r} that cannot be read: {error}") from None
        if found:
            return value
    return default


def layer_order(name: str) -> list[Any]:
    """Sort layer 10 after layer 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
