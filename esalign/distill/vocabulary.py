"""One vocabulary for two models: the same tokenizer, no padding rows, and one event for the end of a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esalign.types import Array

PROBES = ("The answer is 42.", "  def f(x):\n\treturn x**2\n", "naïve Größe 東京 🙂", "<think>1+1=2</think>")


@dataclass(frozen=True)
class SharedVocabulary:
    """The tokens that student and teacher have in common: ids below ``size``.

    Heads are often padded to a round number of rows, not the same for all models of a family; rows behind the
    tokenizer's last id mean nothing, and are cut off before the softmax.

    A base model may end a sequence by another id than a chat model. All ids that end a sequence of either model are one
    event here: ``end`` carries the sum of their mass, the others none.

    Args:
        size: number of ids.
        end: the id that stands for the end of a sequence, the student's; None if neither model has one.
        merged: the other ids that end a sequence.
    """

    size: int
    end: int | None
    merged: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a sequence of either model."""
        return () if self.end is None else (self.end, *self.merged)

    def logprobs(self, logits: Tensor) -> Tensor:
        """Return log-probabilities, shape (..., size), float32 or better, of logits, shape (..., rows of the head)."""
        logits = logits[..., : self.size]
        return self.merge_ends(logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1))

    def merge_ends(self, logprobs: Tensor) -> Tensor:
        """Move the mass of all end ids to one of them, shape (..., size)."""
        if self.end is None or not self.merged:
            return logprobs
        end, merged = (torch.tensor(ids, device=logprobs.device) for ids in ([self.end], list(self.merged)))
        total = logprobs.index_select(-1, torch.cat([end, merged])).logsumexp(dim=-1, keepdim=True)
        return logprobs.index_fill(-1, merged, -float("inf")).index_copy(-1, end, total)

    def with_ends(self, support: Tensor) -> Array:
        """Return the ids to ask an engine for, shape (tokens, wanted): the support, then the other end ids."""
        ids = support.cpu().numpy().astype(np.int64)
        return np.concatenate([ids, np.tile(np.array(self.merged, dtype=np.int64), (len(ids), 1))], axis=1)

    def fold_ends(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Add the mass of the last columns, the other end ids, to the end's column where the support holds the end.

        Elsewhere they belong to the tail, which is what is left.

        Args:
            scores: log-probabilities of what `with_ends` asked for, shape (tokens, wanted).
            wanted: their ids, same shape.
        """
        if self.end is None or not self.merged:
            return scores
        count = len(self.merged)
        own, others = scores[:, :-count], scores[:, -count:].logsumexp(dim=-1, keepdim=True)
        return torch.where(wanted[:, :-count] == self.end, torch.logaddexp(own, others), own)

    @classmethod
    def of_one(cls, size: int, ends: Sequence[int]) -> "SharedVocabulary":
        """Return the vocabulary of a model without a companion."""
        return cls(size, ends[0] if ends else None, tuple(ends[1:]))
