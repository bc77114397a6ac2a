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
from esalign_llama_cpp.names import LINEAR, NORMS

ARCHITECTURE_OF = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
GEMMAS = ("gemma2", "gemma3")
LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, which llama.cpp knows by them, and whose attention it scales in another way."""
ROPE_KINDS = ("default", "linear", "yarn", "llama3")
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None}


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
        part: share of a head that is rotated.
    """

    base: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0
    part: float = 1.0

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
        window: tokens that the blocks of a sliding window see; None where every block sees all.
        slides: of each block, whether it is one of those.
        window_base: base of their rotary embedding.
        attention_cap: soft cap of the attention's logits; None for none.
        final_cap: the same of the output's.
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
    window: int | None = None
    slides: tuple[bool, ...] = ()
    window_base: float = 10000.0
    attention_cap: float | None = None
    final_cap: float | None = None

    @property
    def norm_offset(self) -> float:
        """What is added to the stored weights of norms: Gemma's are distances from 1."""
        return 1.0 if self.architecture in GEMMAS else 0.0

    def layer_names(self) -> Iterator[str]:
        """Yield the layers whose weights must be there."""
        yield from ("model.embed_tokens", "model.norm")
        if not self.tied:
            yield "lm_head"
        for number in range(self.layers):
            for kind in (*LINEAR[self.architecture], *NORMS[self.architecture]):
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
        heads, layers = int(raw["num_attention_heads"]), int(raw["num_hidden_layers"])
        gemma = _read_gemma(raw, layers, folder) if ARCHITECTURE_OF[kind] in GEMMAS else {}
        return ModelConfig(
            architecture=ARCHITECTURE_OF[kind],
            layers=layers,
            width=int(raw["hidden_size"]),
            inner_width=int(raw["intermediate_size"]),
            heads=(heads, int(raw.get("num_key_value_heads") or heads)),
            head_width=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            context=_read_context(raw),
            vocab_size=int(raw["vocab_size"]),
            norm_epsilon=float(raw["rms_norm_eps"]),
            tied=bool(raw.get("tie_word_embeddings", kind.startswith("gemma"))),
            rope=_read_rope(raw, folder),
            ends=tuple(int(token) for token in (end if isinstance(end, list) else [end]) if token is not None),
            **gemma,
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
    kind = raw["model_type"]
    gemma = ARCHITECTURE_OF[kind] in GEMMAS
    activation, wanted = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    problems = {
        "quantization_config": bool(raw.get("quantization_config")),
        activation: (raw.get(activation) or wanted) != wanted,
        "attention_bias": (gemma or kind == "qwen3") and bool(raw.get("attention_bias")),
        "use_bidirectional_attention": bool(raw.get("use_bidirectional_attention")),
        "tie_word_embeddings": kind == "gemma2" and not raw.get("tie_word_embeddings", True),
        "attn_logit_softcapping": gemma and (raw.get("attn_logit_softcapping") is None) == (kind == "gemma2"),
        "final_logit_softcapping": kind == "gemma2" and raw.get("final_logit_softcapping") is None,
        "pretraining_tp": raw.get("pretraining_tp", 1) != 1,
    }
    for key, unsupported in problems.items():
        if unsupported:
            raise _not_converted(folder, f"{key} {raw.get(key)!r}")


def _not_converted(folder: Path, what: str) -> BackendError:
    return BackendError(
        f"model '{folder}' has {what}, which esalign does not convert: convert it with llama.cpp's "
        "convert_hf_to_gguf.py"
    )


def _read_context(raw: Mapping[str, Any]) -> int:
    """Return the longest sequence; where all blocks see a window alone, which GGUF does not say, that of the window."""
    context, window = int(raw["max_position_embeddings"]), raw.get("sliding_window")
    everywhere = raw["model_type"] in ("mistral", "phi3") or raw.get("use_sliding_window")
    return min(context, int(window)) if window is not None and everywhere else context


def _read_gemma(raw: Mapping[str, Any], layers: int, folder: Path) -> dict[str, Any]:
    """Return what only Gemma's configurations have.

    Raises:
        BackendError: attention is scaled otherwise than llama.cpp does for these models.
    """
    architecture, heads = ARCHITECTURE_OF[raw["model_type"]], int(raw["num_attention_heads"])
    scaled = int(raw["hidden_size"]) // heads if layers == LARGEST[architecture] else int(raw["head_dim"])
    if float(raw["query_pre_attn_scalar"]) != scaled:
        raise _not_converted(folder, f"query_pre_attn_scalar {raw['query_pre_attn_scalar']!r} (expected {scaled})")
    every = 2 if architecture == "gemma2" else int(raw.get("sliding_window_pattern") or 6)
    kinds = raw.get("layer_types")
    slides = [kind == "sliding_attention" for kind in kinds] if kinds else [(n + 1) % every > 0 for n in range(layers)]
    rope = (raw.get("rope_parameters") or {}).get("sliding_attention", {})
    own = raw.get("rope_local_base_freq", 10000.0) if architecture == "gemma3" else _rope_of(raw).get("rope_theta")
    return {
        "window": int(raw["sliding_window"]),
        "slides": tuple(slides),
        "window_base": float(rope.get("rope_theta") or own or 10000.0),
        "attention_cap": raw.get("attn_logit_softcapping"),
        "final_cap": raw.get("final_logit_softcapping"),
    }


def _rope_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding of the blocks that see all, in any of the ways in which transformers writes it."""
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    return dict(rope.get("full_attention", rope))


def _read_rope(raw: Mapping[str, Any], folder: Path) -> Rope:
    rope = _rope_of(raw)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    part = float(rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)))
    if part != 1.0 and raw["model_type"] != "phi3":
        raise _not_converted(folder, f"partial_rotary_factor {part:g} (expected 1)")
    if kind not in ROPE_KINDS:
        raise _not_converted(folder, f"a rotary embedding of type {kind!r} (known: {', '.join(ROPE_KINDS)})")
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
        part=part,
    )
