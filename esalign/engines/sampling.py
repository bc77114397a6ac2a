"""The random numbers of each prompt: streams that depend on (seed, prompt) alone, and drawing with them.

Prompt j's stream comes neither from the other prompts nor from the candidates. So all candidates draw alike (common
random numbers), and what is drawn does not depend on how the work is cut.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from esalign.types import Array, Sampling

if TYPE_CHECKING:
    from torch import Tensor


def seed_sequence(seed: int, prompt: int) -> np.random.SeedSequence:
    """Return what prompt j's stream begins with.

    >>> int(seed_sequence(-1, 0).generate_state(1)[0]) == int(seed_sequence(2**64 - 1, 0).generate_state(1)[0])
    True
    """
    return np.random.SeedSequence([seed % 2**64, prompt])


def draw_uniforms(seed: int, prompts: int, tokens: int, dtype: Any = np.float32, *, offset: int = 0) -> Array:
    """Return the random numbers of each prompt from an offset on, shape (prompts, tokens), in [0, 1)."""
    streams = (np.random.default_rng(seed_sequence(seed, offset + j)) for j in range(prompts))
    rows = [stream.random(tokens, dtype=dtype) for stream in streams]
    table = np.array(rows, dtype=dtype).reshape(prompts, tokens)
    return table.clip(max=1 - np.finfo(dtype).eps)  # u * total must stay below total, rounded too


def lay_out_uniforms(sampling: Sampling, prompts: int) -> Array:
    """Return each prompt's random numbers, NaN where it is completed greedily.

    Returns:
        Shape (prompts, max_tokens), or (prompts, 0) where none is drawn; float32.
    """
    drawn = [sampling.draws(j) for j in range(prompts)]
    tokens = sampling.max_tokens if any(drawn) else 0
    uniforms = draw_uniforms(sampling.seed, prompts, tokens, offset=sampling.offset)
    uniforms[~np.array(drawn, dtype=bool)] = np.nan
    return uniforms


def invert(mass: "Tensor", uniforms: "Tensor") -> "Tensor":
    """Draw one token per row: invert its distribution function, in the vocabulary's order, so that like draws like.

    Args:
        mass: not negative, not all zero, of any sum, shape (rows, vocab).
        uniforms: in [0, 1), shape (rows,).

    Returns:
        Ids, shape (rows,). A token without mass is never drawn.
    """
    import torch

    cumulative = mass.cumsum(dim=-1)  # (rows, vocab)
    total = cumulative[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))
    at = torch.minimum(uniforms.to(total.dtype) * total, below)
    return torch.searchsorted(cumulative, at[:, None], right=True)[:, 0]


def choose(logits: Array, sampling: Sampling, uniform: float) -> int:
    """Return the next token: greedily, or where a number in [0, 1) falls in the distribution function of what is left.

    The function is inverted in the vocabulary's order, so that candidates that are alike draw alike.

    Args:
        logits: shape (vocab,).
        sampling: temperature, top-k and the nucleus, which apply in this order.
        uniform: the number; NaN for the likeliest token.

    >>> choose(np.log([0.2, 0.5, 0.3]), Sampling(temperature=1.0), 0.69)
    1
    >>> choose(np.log([0.2, 0.5, 0.3]), Sampling(temperature=1.0, top_p=0.6), 0.69)
    2
    """
    if math.isnan(uniform):
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        least = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        scaled = np.where(scaled < least, -np.inf, scaled)
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    if sampling.top_p < 1.0:  # the fewest tokens that together reach it
        order = np.argsort(-probabilities, kind="stable")
        ordered = probabilities[order]
        probabilities[order[ordered.cumsum() - ordered >= sampling.top_p]] = 0.0
    cumulative = probabilities.cumsum()
    return min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(logits) - 1)
