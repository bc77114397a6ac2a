"""Reading a Hugging Face model's config.json, as far as GGUF can say the same."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import BackendError
from esalign.types import Array
from esalign_llama_cpp.names import LINEAR

ARCHITECTURE_OF = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ROPE_KINDS = ("default", "linear", "yarn", "llama3")
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None}
NORMS = ("input_layernorm", "post_attention_layernorm")
NORMS_OF_HEADS = ("self_attn.q_norm", "self_attn.k_norm")


@dataclass(frozen=True)
class Rope:
    """The rotary position embedding.

    Args:
        base: of the wavelengths.
        kind: default, linear, yarn or llama3.
        factor: by which the context is stretched.
        original_context: the context before it was.
        low: llama3's low_freq_factor.
        high: llama3's high_freq_factor.
    """

    base: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0

    def divisors(self, head_width: int) -> Array:
        """Return by what llama3 divides each frequency, shape (head_width / 2,), float32.

        Long waves are divided by the factor, short ones stay, and those between are interpolated (Llama 3.1).
        """
        frequencies = self.base ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
        turns = self.original_context * frequencies / (2 * math.pi)  # within the original context
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        divisors: Array = (1.0 / ((1.0 - smooth) / self.factor + smooth)).astype(np.float32)
        return divisors


@dataclass(frozen=True)
class ModelConfig:
    """What a GGUF header says of a model.

    Args:
        architecture: GGUF's name.
        layers: number of blocks.
        width: of the residual stream.
        inner_width: of the feed-forward layers.
        heads: attention heads, and those of keys and values.
        head_width: of one head.
        context: longest sequence.
        vocab_size: rows of the embedding.
        norm_epsilon: of the RMS norms.
        tied: whether the head is the embedding.
        rope: position embedding.
        ends: ids that end a completion.
    """

    architecture: str
    layers: int
    width: int
    inner_width: int
    heads: tuple[int, int]
    head_width: int
    context: int
    vocab_size: int
    norm_epsilon: float
    tied: bool
    rope: Rope
    ends: tuple[int, ...]

    def layer_names(self, more: tuple[str, ...] = ()) -> Iterator[str]:
        """Yield the layers whose weights must be there, and more of each block."""
        yield from ("model.embed_tokens", "model.norm")
        if not self.tied:
            yield "lm_head"
        for number in range(self.layers):
            for kind in (*LINEAR, *NORMS, *more):
                yield f"model.layers.{number}.{kind}"


def read_config(folder: Path) -> ModelConfig:
    """Read a model's configuration.

    Raises:
        BackendError: there is none, or it asks for what is not supported here.
    """
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in ARCHITECTURE_OF:
        raise BackendError(
            f"model '{folder}' is of type {kind!r}; backend 'llama-cpp' runs {', '.join(ARCHITECTURE_OF)} alone, as "
            "GGUF files too: use backend 'torch' or 'vllm'"
        )
    _refuse_unsupported(raw, folder)
    generation = folder / "generation_config.json"
    settings = read_json(generation) if generation.is_file() else {}
    end = settings.get("eos_token_id", raw.get("eos_token_id"))  # as transformers chooses
    try:
        heads = int(raw["num_attention_heads"])
        return ModelConfig(
            architecture=ARCHITECTURE_OF[kind],
            layers=int(raw["num_hidden_layers"]),
            width=int(raw["hidden_size"]),
            inner_width=int(raw["intermediate_size"]),
            heads=(heads, int(raw.get("num_key_value_heads") or heads)),
            head_width=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            context=int(raw["max_position_embeddings"]),
            vocab_size=int(raw["vocab_size"]),
            norm_epsilon=float(raw["rms_norm_eps"]),
            tied=bool(raw.get("tie_word_embeddings")),
            rope=_read_rope(raw, folder),
            ends=tuple(int(token) for token in (end if isinstance(end, list) else [end]) if token is not None),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"'{folder}/config.json' is not complete: {type(error).__name__} {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BackendError: the file is missing or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BackendError(f"'{file}' cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise BackendError(f"'{file}' is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BackendError(f"'{file}' holds {type(content).__name__}, expected a JSON object")
    return content


def _refuse_unsupported(raw: Mapping[str, Any], folder: Path) -> None:
    problems = {
        "quantization_config": bool(raw.get("quantization_config")),
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "sliding_window": _slides(raw),
        "attention_bias": raw.get("model_type") == "qwen3" and bool(raw.get("attention_bias")),
        "pretraining_tp": raw.get("pretraining_tp", 1) != 1,
    }
    for key, unsupported in problems.items():
        if unsupported:
            raise BackendError(
                f"model '{folder}' has {key} {raw.get(key)!r}, which esalign does not convert: "
                "convert it with llama.cpp's convert_hf_to_gguf.py"
            )


def _slides(raw: Mapping[str, Any]) -> bool:
    """Tell whether attention sees less than the context. Qwen's window is switched on by another key."""
    window = raw.get("sliding_window")
    switched_on = raw.get("use_sliding_window", not str(raw.get("model_type")).startswith("qwen"))
    return window is not None and bool(switched_on) and int(window) < int(raw.get("max_position_embeddings", 0))


def _read_rope(raw: Mapping[str, Any], folder: Path) -> Rope:
    """Read either of the two ways in which transformers writes it."""
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_KINDS or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise BackendError(
            f"model '{folder}' has a rotary embedding of type {kind!r}; esalign converts {', '.join(ROPE_KINDS)}: "
            "convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    for key, default in YARN_DEFAULTS.items():
        if kind == "yarn" and rope.get(key, default) not in (default, None):
            raise BackendError(f"model '{folder}' has YaRN with {key} {rope[key]!r}, which esalign does not convert")
    return Rope(
        base=float(rope.get("rope_theta") or 10000.0),
        kind=kind,
        factor=float(rope.get("factor", 1.0)),
        original_context=int(rope.get("original_max_position_embeddings") or raw["max_position_embeddings"]),
        low=float(rope.get("low_freq_factor", 1.0)),
        high=float(rope.get("high_freq_factor", 4.0)),
    )
