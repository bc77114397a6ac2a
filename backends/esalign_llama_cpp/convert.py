"""Writing Hugging Face models of the Llama, Mistral, Qwen, Gemma and Phi-3 families as GGUF files."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import BackendError
from esalign.types import Array
from esalign_llama_cpp.config import ModelConfig, read_config
from esalign_llama_cpp.names import heads_to_permute, permute, to_gguf
from esalign_llama_cpp.vocabulary import add_vocabulary

STORED_TYPES = ("f32", "f16", "bf16")
SKIPPED = ("rotary_emb.inv_freq", "masked_bias")


def convert_model(folder: str | Path, out: str | Path, *, kind: str = "f32") -> Path:
    """Write a Hugging Face model as a GGUF file.

    The file gets the tokenizer's vocabulary and merges. How text is cut up before merging has only names in GGUF, so a
    tokenizer that cuts in a way of its own, as small ones do, is stored as ``default``: feed token ids then.

    Args:
        folder: config.json, safetensors weights, tokenizer.json.
        out: the file to write.
        kind: type of the matrices: f32, f16 or bf16. Vectors are float32 in any case.

    Returns:
        The file.

    Raises:
        BackendError: the architecture, or a detail of it, is not supported, or a file is missing or broken.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, LlamaFileType

    if kind not in STORED_TYPES:
        raise BackendError(f"models are converted to one of {', '.join(STORED_TYPES)}, not to {kind!r}")
    source = Path(folder)
    config = read_config(source)
    file_types = dict(
        zip(STORED_TYPES, (LlamaFileType.ALL_F32, LlamaFileType.MOSTLY_F16, LlamaFileType.MOSTLY_BF16), strict=True)
    )
    writer = GGUFWriter(out, config.architecture)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(source.name)
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_hyperparameters(writer, config)
    add_vocabulary(writer, source, config)
    for name, values in _tensors(source, config):
        _add_tensor(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(out)


def _add_hyperparameters(writer: Any, config: ModelConfig) -> None:
    """Write the header's part on the architecture."""
    from gguf import RopeScalingType

    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.inner_width)
    writer.add_head_count(config.heads[0])
    writer.add_head_count_kv(config.heads[1])
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(config.rope.base)
    writer.add_rope_dimension_count(int(config.head_width * config.rope.part))
    if config.rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(config.rope.kind))
        writer.add_rope_scaling_factor(config.rope.factor)
    if config.rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_context)
    if config.window is not None:
        writer.add_sliding_window(config.window)
        writer.add_sliding_window_pattern(list(config.slides))
        writer.add_rope_freq_base_swa(config.window_base)
    if config.attention_cap is not None:
        writer.add_attn_logit_softcapping(config.attention_cap)
    if config.final_cap is not None:
        writer.add_final_logit_softcapping(config.final_cap)
    if config.rope.kind == "llama3":
        writer.add_tensor("rope_freqs.weight", config.rope.divisors(config.head_width))


def _add_tensor(writer: Any, name: str, values: Array, kind: str) -> None:
    from gguf import GGMLQuantizationType, quantize

    if values.ndim == 1 or kind == "f32":
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    elif kind == "f16":
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise BackendError(f"{name} holds numbers that are too large for f16: convert to bf16 or f32")
        writer.add_tensor(name, np.ascontiguousarray(halves))
    else:
        stored = GGMLQuantizationType.BF16
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)


def _tensors(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Array]]:
    """Yield the weights under their GGUF names, float32, laid out as llama.cpp wants them."""
    needed = {to_gguf(layer, config.architecture) for layer in config.layer_names()}
    seen = set()
    weights = (read_weights(file, lambda tensors, name: tensors.get_tensor(name)) for file in weight_files(folder))
    for name, weight in itertools.chain.from_iterable(weights):
        if name.endswith(SKIPPED) or (name == "lm_head.weight" and config.tied):
            continue
        layer, _, suffix = name.rpartition(".")
        ours = to_gguf(layer, config.architecture)
        if ours not in needed or suffix not in ("weight", "bias"):
            raise BackendError(f"model '{folder}' has the weight {name!r}, which its architecture has no place for")
        seen.add(ours)
        offset = config.norm_offset if layer.endswith("norm") else 0.0
        heads = heads_to_permute(layer, config.architecture, config.heads)
        yield f"{ours}.{suffix}", permute(weight.float().numpy() + offset, heads)
    missing = sorted(str(name) for name in needed - seen)
    if missing:
        raise BackendError(f"model '{folder}' has no weights for {missing[0]}: is the download complete?")


def read_weights(file: Path, read: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names in a safetensors file, with what is read of each from the open file.

    Raises:
        BackendError: the file is broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no dictionary)
                yield name, read(tensors, name)
    except (SafetensorError, OSError) as error:
        raise BackendError(f"'{file}' is broken ({error}): download the model again") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the files that the index lists, or all of them; other tools leave further ones beside.

    Raises:
        BackendError: there are none.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise BackendError(f"model '{folder}' has no safetensors weights")
    return files
