"""Attention of one new token for each sequence, where query heads share keys and values."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from esalign.engines.loading import quiet

NAME = "esalign_sdpa"


def share_keys(model: Any) -> None:
    """Let a model that uses transformers' `sdpa` read shared keys and values once, by `attend`."""
    if model.config.get_text_config()._attn_implementation == "sdpa":  # noqa: SLF001  (no public name)
        # Not at the top: it imports torchao, which is quiet only once a model was loaded.
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        with quiet():  # models of old remote code keep their own attention
            model.set_attn_implementation(NAME)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa`, which with a mask first copies keys and values for each head that shares them.

    For one new token, the heads that share keys are like several tokens of one head, and no copy is needed. With three
    heads to a key, that takes a quarter of the time on a CPU.

    Args:
        module: the attention layer.
        query: shape (rows, heads, tokens, width).
        key: shape (rows, shared heads, slots, width).
        value: shape (rows, shared heads, slots, width).
        attention_mask: shape (rows, 1, tokens, slots), or None.
        options: see transformers; ``scaling`` of the products is read here.

    Returns:
        Shape (rows, tokens, heads, width), and None.
    """
    rows, heads, tokens, width = query.shape
    shared = key.shape[1]
    biased = options.get("position_bias") is not None
    if tokens > 1 or heads == shared or attention_mask is None or attention_mask.shape[1] > 1 or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    grouped = query.reshape(rows, shared, heads // shared, width)
    mask = attention_mask.expand(-1, -1, heads // shared, -1)
    found = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=options.get("scaling"))
    return found.reshape(rows, 1, heads, -1), None
