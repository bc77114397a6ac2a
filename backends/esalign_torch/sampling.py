"""Choosing the next token, greedily or from a random stream that belongs to the prompt."""

import torch
from torch import Tensor

from esalign.engines.sampling import invert
from esalign.types import Sampling

SLICE_ELEMENTS = 2**26


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Return the next token of each row.

    Args:
        logits: shape (rows, vocab).
        sampling: temperature, top-k and the nucleus.
        uniforms: each row's number, in [0, 1), shape (rows,), NaN for the likeliest token.
    """
    tokens = logits.argmax(dim=-1)
    drawn = (~uniforms.isnan()).nonzero()[:, 0]
    for rows in drawn.split(max(1, SLICE_ELEMENTS // logits.shape[-1])) if len(drawn) else ():
        tokens[rows] = _draw(logits[rows], sampling, uniforms[rows])
    return tokens


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return what the model itself says of tokens, shape (rows,), from logits of shape (rows, vocab)."""
    parts = logits.split(max(1, SLICE_ELEMENTS // logits.shape[-1]))
    norms = torch.cat([part.float().logsumexp(dim=-1) for part in parts])
    return logits.gather(1, tokens[:, None])[:, 0].float() - norms


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Draw from what temperature, top-k and the nucleus leave, in this order."""
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    if sampling.top_p < 1.0:
        probabilities = _nucleus(probabilities, sampling.top_p)
    return invert(probabilities, uniforms)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the most probable tokens, the fewest that together reach top_p."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, kept)
