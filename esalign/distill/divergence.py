"""Divergences between a student's and a teacher's next-token distributions, in nats, differentiable.

All take log-probabilities of the same tokens, shape (..., vocab), and give shape (...). A token that neither can emit
(-inf in both) counts nothing. On a support of a few tokens the mass of all others is kept as one more token, the tail:
merging tokens can only lower a divergence (data processing inequality), never below zero, so a student gains nothing by
moving mass off the support. Without the tail it would.
"""

from collections.abc import Callable, Mapping
from math import log

import torch
from torch import Tensor


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(student || teacher), shape (...): the loss of on-policy distillation. It seeks modes.

    Args:
        student: log-probabilities, shape (..., vocab).
        teacher: log-probabilities, shape (..., vocab).
    """
    return _kl(student, teacher)


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student), shape (...): the loss of supervised distillation. It covers modes."""
    return _kl(teacher, student)


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of both KLs to the even mixture, shape (...), between 0 and log 2."""
    possible = torch.maximum(student, teacher) > -float("inf")
    # logaddexp(-inf, -inf) has no gradient, so such tokens are taken out first
    mixture = torch.logaddexp(student.masked_fill(~possible, 0.0), teacher.masked_fill(~possible, 0.0)) - log(2.0)
    return (_kl(student, mixture) + _kl(teacher, mixture)) / 2


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jensen_shannon": jensen_shannon,
}


def top_support(logprobs: Tensor, size: int) -> Tensor:
    """Return the ids of the likeliest tokens, shape (..., min(size, vocab)): the student's, for the paper's loss."""
    return logprobs.topk(min(size, logprobs.shape[-1]), dim=-1, sorted=True).indices


def coarsen(logprobs: Tensor, support: Tensor, *, mass: Tensor | None = None) -> Tensor:
    """Return log-probabilities on a support and of its tail.

    The tail is summed over the tokens outside, so it is exact however small it is.

    Args:
        logprobs: shape (..., vocab).
        support: token ids, different ones, shape (..., support).
        mass: ``logprobs.exp()``, if it is known already.

    Returns:
        shape (..., support + 1), the tail last; the smallest tail is the dtype's smallest normal number.
    """
    mass = logprobs.exp() if mass is None else mass
    outside = mass.scatter(-1, support, 0.0).sum(dim=-1, keepdim=True)
    tail = outside.clamp_min(torch.finfo(logprobs.dtype).tiny).log()
    return torch.cat([logprobs.gather(-1, support), tail], dim=-1)


def append_tail(selected: Tensor) -> Tensor:
    """Append the tail to log-probabilities that are known on a support only.

    The tail is one minus the rest, so it is exact to the rounding of 1 (1e-7 in float32), which is also its floor.

    Args:
        selected: shape (..., support).

    Returns:
        shape (..., support + 1), the tail last.
    """
    inside = selected.exp().sum(dim=-1, keepdim=True)
    tail = (1.0 - inside).clamp_min(torch.finfo(selected.dtype).eps).log()
    return torch.cat([selected, tail], dim=-1)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second). Both the value and the gradient of a token that ``first`` cannot emit are zero."""
    possible = first > -float("inf")
    first = first.masked_fill(~possible, 0.0)
    gap = first - second.masked_fill(~possible, 0.0)
    return (first.exp() * gap).masked_fill(~possible, 0.0).sum(dim=-1)
