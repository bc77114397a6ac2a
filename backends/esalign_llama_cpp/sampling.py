"""Choosing the next token, greedily or from a random stream that belongs to the prompt."""

import numpy as np

from esalign.types import Array, Sampling


def choose(logits: Array, sampling: Sampling, uniform: float | None) -> int:
    """Return the next token, from logits of shape (vocab,).

    The distribution function is inverted in the vocabulary's order, so that candidates that are alike draw alike.
    """
    if uniform is None:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        least = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        scaled = np.where(scaled < least, -np.inf, scaled)
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    if sampling.top_p < 1.0:
        probabilities = _nucleus(probabilities, sampling.top_p)
    cumulative = probabilities.cumsum()
    return min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(logits) - 1)


def _nucleus(probabilities: Array, top_p: float) -> Array:
    """Zero all but the most probable tokens, the fewest that together reach top_p."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    kept = np.zeros_like(probabilities)
    inside = order[ordered.cumsum() - ordered < top_p]
    kept[inside] = probabilities[inside]
    return kept


def log_probabilities(logits: Array, wanted: Array) -> Array:
    """Return the log-probabilities of wanted tokens, ids of shape (tokens, k), from logits (tokens, vocab), float32."""
    peak = logits.max(axis=1, keepdims=True)
    norm = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True, dtype=np.float64))
    return (np.take_along_axis(logits, wanted, axis=1) - norm).astype(np.float32)
