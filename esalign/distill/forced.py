"""Teacher-forced reading: the logits that a model gives at every token of given answers, in one pass."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from esalign.types import Sequences


def answer_logits(model: Any, sequences: Sequences, *, pad: int = 0) -> Tensor:
    """Return the logits behind every answer token, shape (answer tokens of all sequences, rows of the head).

    Answers stand at the left and padding at the right, where causal attention does not see it: no mask is needed.

    Args:
        model: a causal language model of transformers.
        sequences: (prompt ids, answer ids) pairs, neither empty.
        pad: the id that fills short sequences.
    """
    fed = [[*prompt, *answer][:-1] for prompt, answer in sequences]  # nothing follows the last token
    width = max(len(ids) for ids in fed)
    first = min(len(prompt) for prompt, _ in sequences) - 1
    device = model.device
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in fed], device=device)
    wanted = torch.arange(first, width, device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=wanted).logits
    starts = torch.tensor([len(prompt) - 1 for prompt, _ in sequences], device=device)[:, None]
    stops = torch.tensor([len(row) for row in fed], device=device)[:, None]
    answers: Tensor = logits[(wanted >= starts) & (wanted < stops)]
    return answers


def in_batches(sequences: Sequences, max_tokens: int) -> Iterator[list[int]]:
    """Yield the places of sequences that are read together: of similar length, at most so many tokens with padding.

    A sequence that is longer is read alone.
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in sequences]
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[place] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def pick(sequences: Sequences, places: Sequence[int]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return the sequences at some places."""
    return [sequences[place] for place in places]
