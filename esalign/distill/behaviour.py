"""Who samples: the behaviour policies of on-policy distillation, as distributions that student and teacher make.

All differ only here. A behaviour sees both models' log-probabilities at a prefix and says which distribution the next
token is drawn from; how the student then learns from the prefixes it visited is the same for all.
"""

from dataclasses import dataclass
from math import cos, inf, pi
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from esalign.config.distill import BehaviourSection
from esalign.distill.divergence import reverse_kl
from esalign.distill.trust_region import Blend, trust_region_blend

Shape: TypeAlias = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class Schedule:
    """A quantity over the updates of a run.

    Args:
        start: its value at update 0.
        steps: updates until it is at ``end``; None keeps it at ``start`` for ever.
        shape: ``linear``: ``start (1 - k / steps)`` for end 0, the paper's; ``cosine``; ``constant``: start until then.
        end: its value from update ``steps`` on.
    """

    start: float
    steps: int | None = None
    shape: Shape = "linear"
    end: float = 0.0

    def at(self, step: int) -> float:
        """Return the value at an update, the first being 0.

        >>> [round(Schedule(0.02, 4).at(step), 3) for step in range(6)]
        [0.02, 0.015, 0.01, 0.005, 0.0, 0.0]
        """
        if self.steps is None:
            return self.start
        if step >= self.steps:
            return self.end
        done = {"linear": step / self.steps, "cosine": (1 - cos(pi * step / self.steps)) / 2, "constant": 0.0}
        share = done[self.shape]
        return self.start if share == 0.0 else self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class TrustRegion:
    """TRB: the distribution closest to the teacher within a budget of KL to the student.

    Budget 0 is plain on-policy distillation, infinite budget is sampling from the teacher.

    Args:
        budget: eps in nats per token.
    """

    budget: Schedule

    def blend(self, student: Tensor, teacher: Tensor, step: int) -> Blend:
        """Return the trust region's distributions."""
        return trust_region_blend(student, teacher, self.budget.at(step))

    def needs_teacher(self, step: int) -> bool:
        """The student alone samples when the budget is used up."""
        return self.budget.at(step) > 0


def student_alone() -> TrustRegion:
    """Return plain on-policy distillation."""
    return TrustRegion(Schedule(0.0))


@dataclass(frozen=True)
class Temperature:
    """The student at another temperature, which warms up to 1.

    Args:
        temperature: a schedule that ends at 1.
    """

    temperature: Schedule

    def blend(self, student: Tensor, teacher: Tensor, step: int) -> Blend:  # noqa: ARG002  # others look at the teacher
        """Return the student's distribution at the present temperature."""
        temperature = self.temperature.at(step)
        logprobs = student if temperature == 1.0 else (student / temperature).log_softmax(dim=-1)
        return _without_beta(logprobs, student)

    def needs_teacher(self, step: int) -> bool:  # noqa: ARG002  # the interface's
        """The student alone samples."""
        return False


@dataclass(frozen=True)
class Speculative:
    """SKD: the student proposes; a token outside the teacher's likeliest is drawn again, from the teacher.

    The two draws are one draw from ``p_S(a) [a in top] + p_S(outside) p_T(a)``. Source: "Speculative Knowledge
    Distillation", arXiv 2410.11325.

    Args:
        top: the number of the teacher's likeliest tokens that pass.
        steps: updates until the student samples alone; None: never.
    """

    top: int
    steps: int | None = None

    def blend(self, student: Tensor, teacher: Tensor, step: int) -> Blend:
        """Return the distribution of accepted and redrawn tokens."""
        if not self.needs_teacher(step):
            return _without_beta(student, student)
        allowed = teacher.topk(min(self.top, teacher.shape[-1]), dim=-1).indices
        proposed = student.exp()
        accepted = torch.zeros_like(proposed).scatter(-1, allowed, proposed.gather(-1, allowed))
        refused = (proposed - accepted).sum(dim=-1, keepdim=True)
        return _without_beta((accepted + refused * teacher.exp()).log(), student)

    def needs_teacher(self, step: int) -> bool:
        """During the warm-up."""
        return self.steps is None or step < self.steps


Behaviour: TypeAlias = TrustRegion | Temperature | Speculative
"""`blend` gives the distributions to draw from, of log-probabilities (batch, vocab); `needs_teacher` says who runs."""


def make_behaviour(section: BehaviourSection) -> Behaviour:
    """Return the behaviour that a configuration names."""
    steps = section.steps
    if section.name == "trust-region":
        return TrustRegion(Schedule(section.budget, steps, section.schedule))
    if section.name == "temperature":
        return Temperature(Schedule(section.temperature, steps, section.schedule, end=1.0))
    if section.name == "speculative":
        return Speculative(section.top, steps)
    if section.name == "student":
        return student_alone()
    return TrustRegion(Schedule(inf, steps, "constant"))  # the teacher samples, then the student


def _without_beta(logprobs: Tensor, student: Tensor) -> Blend:
    """Return a blend of a behaviour that is no geometric mixture: its beta is NaN."""
    kl = reverse_kl(logprobs, student).double()
    return Blend(logprobs, torch.full_like(kl, float("nan")), kl)
