"""The loss of distillation: at every visited prefix, a divergence that is backpropagated through itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esalign.distill.divergence import DivergenceName, append_tail, divergence
from esalign.distill.rollout import Rollout
from esalign.distill.vocabulary import SharedVocabulary


def token_losses(
    logits: Tensor, rollouts: Sequence[Rollout], vocabulary: SharedVocabulary, name: DivergenceName
) -> Tensor:
    """Return the divergence from the student to the teacher at each completed token, nats, shape (tokens,).

    No importance weights: the prefixes are those that the behaviour visited, and that is all it decides. A sampled
    log-ratio as an advantage would have no gradient in expectation on a support; the divergence itself has.

    Args:
        logits: the student's at these tokens, shape (tokens, rows of the head).
        rollouts: the completions, whose remembered teacher is the target.
        vocabulary: what both share.
        name: of the divergence.
    """
    student = vocabulary.logprobs(logits)
    supports = [rollout.support for rollout in rollouts if rollout.support is not None]
    if supports:
        student = append_tail(student.gather(-1, torch.cat(supports)))
    return divergence(name)(student, torch.cat([rollout.teacher for rollout in rollouts]))


def supervised_losses(logits: Tensor, rollouts: Sequence[Rollout], vocabulary: SharedVocabulary) -> Tensor:
    """Return the student's negative log-likelihood of each completed token, nats, shape (tokens,)."""
    drawn = torch.tensor([token for rollout in rollouts for token in rollout.token_ids], device=logits.device)
    return -vocabulary.logprobs(logits).gather(-1, drawn[:, None])[:, 0]
