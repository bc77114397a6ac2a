"""Choosing the next token, greedily or from a random stream that belongs to the prompt."""

import numpy as np
import torch
from torch import Tensor

from esalign.types import Sampling

ALMOST_ONE = 1.0 - 2.0**-23
SLICE_ELEMENTS = 2**26


def draw_uniforms(sampling: Sampling, prompts: int, device: torch.device) -> Tensor:
    """Return the random numbers of each prompt, shape (prompts, max_tokens), in [0, 1); (prompts, 0) when greedy.

    Prompt j's numbers come from (seed, j) alone: not from the other prompts, nor from the candidates.
    """
    if sampling.temperature == 0.0:
        return torch.empty(prompts, 0, device=device)
    seed = sampling.seed % 2**64
    rows = [np.random.default_rng([seed, j]).random(sampling.max_tokens, dtype=np.float32) for j in range(prompts)]
    table = np.array(rows, dtype=np.float32).reshape(prompts, sampling.max_tokens)
    return torch.from_numpy(table.clip(max=ALMOST_ONE)).to(device)


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    """Return the next token of each row, shape (rows,), from logits (rows, vocab) and uniforms (rows,)."""
    if uniforms is None:
        return logits.argmax(dim=-1)
    rows = max(1, SLICE_ELEMENTS // logits.shape[-1])
    parts = zip(logits.split(rows), uniforms.split(rows), strict=True)
    return torch.cat([_draw(part, sampling, u) for part, u in parts])


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Invert the distribution function, in the vocabulary's order, so that candidates that are alike draw alike."""
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    if sampling.top_p < 1.0:
        probabilities = _nucleus(probabilities, sampling.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the most probable tokens, the fewest that together reach top_p."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, kept)
