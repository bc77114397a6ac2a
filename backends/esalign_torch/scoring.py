"""Teacher-forced log-probabilities of given completions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esalign_torch.batches import Limits
from esalign_torch.decoding import Engine


class ScoreRow(NamedTuple):
    """One completion to be scored.

    Args:
        candidate: the candidate's index.
        sequence: the sequence's index.
        ids: prompt and completion.
        start: where the completion begins in ids, at least 1.
        wanted: ids of interest at each place of the completion, shape (tokens, k).
    """

    candidate: int
    sequence: int
    ids: tuple[int, ...]
    start: int
    wanted: Tensor


@contextmanager
def _only_at(head: nn.Module, flat: Tensor) -> Iterator[None]:
    """Let a model's head see chosen positions only: the logits of all would not fit the memory.

    It picks before the head rather than after the trunk, as some models change the logits behind their head.

    Args:
        head: the output head.
        flat: the positions, counted through all rows, shape (chosen,).
    """

    def pick(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # (rows, tokens, features)
        return (hidden.reshape(1, -1, hidden.shape[-1])[:, flat], *args[1:])  # (1, chosen, features)

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def cut_scoring(rows: Sequence[ScoreRow], limits: Limits, vocab: int) -> Iterator[list[ScoreRow]]:
    """Cut rows, the longest first, into batches that keep the limits on tokens and logits."""
    batch: list[ScoreRow] = []
    scored = 0
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        scored += len(row.wanted)
        tokens = (len(batch) + 1) * len((batch or [row])[0].ids)
        if batch and (tokens > limits.tokens or scored * vocab > limits.logits):
            yield batch
            batch, scored = [], len(row.wanted)
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def score_batch(engine: Engine, rows: Sequence[ScoreRow], table: Tensor) -> list[Tensor]:
    """Return the log-probabilities of each row's wanted ids, each of shape (tokens, k), float32, on the CPU.

    Completions stand at the left and padding at the right, where causal attention does not see it: no mask is needed.
    """
    width = max(len(row.ids) for row in rows) - 1  # nothing follows the last token
    device = engine.device
    ids = [list(row.ids[:-1]) + [engine.pad] * (width + 1 - len(row.ids)) for row in rows]
    flat = [i * width + at for i, row in enumerate(rows) for at in range(row.start - 1, len(row.ids) - 1)]
    engine.values.show(table[torch.tensor([row.candidate for row in rows], device=device)])
    with _only_at(engine.model.get_output_embeddings(), torch.tensor(flat, device=device)):
        logits = engine.model(input_ids=torch.tensor(ids, device=device), use_cache=False).logits[0]  # (chosen, vocab)
    wanted = _stack([row.wanted for row in rows]).to(device)
    scores = _log_probabilities(logits, wanted).cpu()
    counts = [len(row.wanted) for row in rows]
    parts = scores.split(counts)
    return [part[:, : row.wanted.shape[1]] for part, row in zip(parts, rows, strict=True)]


def _stack(wanted: Sequence[Tensor]) -> Tensor:
    """Join tables (tokens, k) with differing k into one, shape (all tokens, largest k)."""
    k = max(part.shape[1] for part in wanted)
    return torch.cat([nn.functional.pad(part, (0, k - part.shape[1])) for part in wanted])


def _log_probabilities(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return log softmax of logits (tokens, vocab) at wanted (tokens, k), in float32."""
    logits = logits.float()
    return logits.gather(1, wanted) - logits.logsumexp(dim=-1, keepdim=True)
