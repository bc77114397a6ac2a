"""How layers are called and laid out, in Hugging Face models and in GGUF files."""

import re

import numpy as np

from esalign.errors import AdapterError
from esalign.types import Array

_SPLIT = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_NORMS_AROUND = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_NORMS_OF_HEADS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

LINEAR = {"llama": _SPLIT, "qwen2": _SPLIT, "qwen3": _SPLIT, "gemma2": _SPLIT, "gemma3": _SPLIT, "phi3": _FUSED}
"""What the linear layers of a block are called, in Hugging Face models and in GGUF files, by GGUF's architecture."""

NORMS = {
    "llama": _NORMS,
    "qwen2": _NORMS,
    "qwen3": _NORMS | _NORMS_OF_HEADS,
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND | _NORMS_OF_HEADS,
    "phi3": _NORMS,
}
"""The same of its norms."""

ARCHITECTURES = tuple(LINEAR)

PERMUTED = "llama"
"""The one that stores the rows of q and k in another order: its rotary embedding pairs neighbours, not halves."""

OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_GGUF_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")


def to_gguf(name: str, architecture: str) -> str | None:
    """Return what a GGUF file calls a layer, None when it knows none of that name.

    >>> to_gguf("model.layers.3.self_attn.o_proj", "llama")
    'blk.3.attn_output'
    """
    match = _BLOCK.match(name)
    if match is None:
        return OUTSIDE.get(name)
    kind = (LINEAR[architecture] | NORMS[architecture]).get(match[2])
    return None if kind is None else f"blk.{match[1]}.{kind}"


def linear_to_gguf(name: str, architecture: str) -> str:
    """Return what a GGUF file calls an adapted layer.

    Raises:
        AdapterError: the layer is none of the linear ones of such a model.
    """
    match, known = _BLOCK.match(name), LINEAR[architecture]
    if match is None or match[2] not in known:
        raise AdapterError(
            f"the adapter adapts {name!r}, expected linear layers of a model of architecture {architecture!r} "
            f"(model.layers.<n>.{{{', '.join(known)}}})"
        )
    return f"blk.{match[1]}.{known[match[2]]}"


def linear_from_gguf(name: str, architecture: str) -> str:
    """Return what Hugging Face models call an adapted layer of a GGUF file.

    Raises:
        AdapterError: it is none of the known linear layers.

    >>> linear_from_gguf("blk.3.ffn_up", "llama"), linear_from_gguf("blk.3.ffn_up", "phi3")
    ('model.layers.3.mlp.up_proj', 'model.layers.3.mlp.gate_up_proj')
    """
    match, known = _GGUF_BLOCK.match(name), LINEAR[architecture]
    for theirs, ours in known.items():
        if match is not None and match[2] == ours:
            return f"model.layers.{match[1]}.{theirs}"
    raise AdapterError(f"the adapter adapts {name!r}, expected blk.<n>.{{{', '.join(known.values())}}}")


def heads_to_permute(name: str, architecture: str, heads: tuple[int, int]) -> int | None:
    """Return the number of heads by which a layer's rows are permuted, None when they are not.

    Args:
        name: the layer's name in the Hugging Face model.
        architecture: of the GGUF file.
        heads: attention heads, and those of keys and values.
    """
    if architecture != PERMUTED:
        return None
    return {"q_proj": heads[0], "k_proj": heads[1]}.get(name.rpartition(".")[2])


def permute(rows: Array, heads: int | None) -> Array:
    """Reorder the rows of q or k, shape (out, ...), as GGUF's llama stores them; heads None leaves them.

    Within a head, the Hugging Face order has the first members of all rotated pairs, then the second ones; GGUF's has
    the two of each pair together.
    """
    if heads is None:
        return rows
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def unpermute(rows: Array, heads: int | None) -> Array:
    """Undo `permute`."""
    if heads is None:
        return rows
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
