"""Teacher-forced reading: the logits that a model gives at every token of given completions, in one pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from esalign.types import Sequences


def completion_logits(model: Any, sequences: Sequences, *, pad: int = 0) -> Tensor:
    """Return the logits behind every completion token, shape (completion tokens of all sequences, rows of the head).

    Sequences stand at the left and padding at the right, where causal attention does not see it: no mask is needed.

    Args:
        model: a causal language model of transformers.
        sequences: (prompt ids, completion ids) pairs, neither empty.
        pad: the id that fills short sequences.
    """
    fed = [[*prompt, *completion][:-1] for prompt, completion in sequences]  # nothing follows the last token
    width = max(len(ids) for ids in fed)
    first = min(len(prompt) for prompt, _ in sequences) - 1  # the earliest position that predicts a completion's token
    device = model.device
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in fed], device=device)
    wanted = torch.arange(first, width, device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=wanted).logits  # (sequences, wanted, rows)
    starts = torch.tensor([len(prompt) - 1 for prompt, _ in sequences], device=device)[:, None]
    stops = torch.tensor([len(row) for row in fed], device=device)[:, None]
    completions: Tensor = logits[(wanted >= starts) & (wanted < stops)]  # mask (sequences, wanted)
    return completions


def in_batches(sequences: Sequences, max_tokens: int) -> Iterator[list[int]]:
    """Yield the places of sequences that are read together: of similar length, at most so many tokens with padding.

    A sequence that is longer is read alone.
    """
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[place] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def read_completions(model: Any, sequences: Sequences, max_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each sequence's place and its logits, shape (completion's tokens, rows of the head), in any order."""
    for places in in_batches(sequences, max_tokens):
        logits = completion_logits(model, [sequences[place] for place in places])
        counts = [len(sequences[place][1]) for place in places]
        yield from zip(places, logits.split(counts), strict=True)
