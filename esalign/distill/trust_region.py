"""The exact trust region: as close to the teacher as a budget of KL to the student allows, prefix by prefix.

With r = log p_T - log p_S, the closest distribution to the teacher within KL(mu || p_S) <= eps is

    mu_beta ~ p_S^(1 - beta) p_T^beta = p_S exp(beta r),     beta* = max {beta in [0, 1] : K(beta) <= eps}
    A(beta) = log sum_a p_S(a) exp(beta r(a))                log-partition of this exponential family
    K(beta) = KL(mu_beta || p_S) = beta A'(beta) - A(beta)   where A' = E[r] and A'' = Var[r] under mu_beta
    K'(beta) = beta A''(beta) >= 0                           so K grows, and its root is unique

The root is found in a bracket, by cubic interpolation of beta over sqrt(K), to which it is nearly proportional
(K ~ beta^2 Var[r] / 2), with the slopes that the variance gives. All is computed in float64, a few rows at a time so
that they stay in the processor's cache. What is returned was evaluated and found within the budget.

Source: "Trust-Region Behavior Blending for On-Policy Distillation", arXiv 2605.31159, section 3.
"""

from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from esalign.errors import DistillationError

_UNUSED = 1e-6  # share of the budget that the solver may leave unused
_ROUNDING = 1e-15  # of K in float64, absolute
_TRUSTED_STEPS = 8  # after these, every second step bisects
_MAX_STEPS = 120
_MISSED_SUM = (
    0.1  # nats by which log-probabilities may miss a sum of one: bfloat16's rounding does, logits miss by more
)
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}


@dataclass(frozen=True)
class Blend:
    """The blended distributions of a batch of prefixes.

    Args:
        logprobs: log mu, shape (batch, vocab), in the student's dtype, or in float32 if that is coarser.
        beta: in [0, 1], shape (batch,), float64: 0 is the student, 1 the teacher.
        kl_student: KL(mu || student) in nats, at most the budget, shape (batch,), float64.
    """

    logprobs: Tensor
    beta: Tensor
    kl_student: Tensor


def trust_region_blend(student_logprobs: Tensor, teacher_logprobs: Tensor, budget: float | Tensor) -> Blend:
    """Return the distribution closest to the teacher, in KL(mu || teacher), among those within the budget.

    Budget 0 gives the student, exactly; a teacher within the budget is returned, exactly. Tokens that the student
    cannot emit (-inf) stay so: then "the teacher" is the teacher restricted to the other tokens. Where the teacher
    cannot emit what the student can, and the budget does not suffice to give that up, beta is 0.

    Args:
        student_logprobs: log-probabilities over the full vocabulary, -inf for masked tokens, shape (batch, vocab).
        teacher_logprobs: the teacher's, of the same tokens, shape (batch, vocab).
        budget: eps, the most KL(mu || student) in nats, 0 to infinity: one, or one per row, shape (batch,).

    Raises:
        DistillationError: unequal shapes, a negative budget, NaN, or rows that do not sum to one.
    """
    budgets = _checked_budgets(student_logprobs, teacher_logprobs, budget)
    num_rows, vocab = student_logprobs.shape
    dtype = torch.promote_types(student_logprobs.dtype, torch.float32)
    blended = torch.empty_like(student_logprobs, dtype=dtype, requires_grad=False)  # log mu, (batch, vocab)
    beta, kl = torch.zeros_like(budgets), torch.zeros_like(budgets)
    rows = min(num_rows, max(1, _CHUNK_ELEMENTS.get(student_logprobs.device.type, 1 << 18) // vocab))
    room = blended.new_empty((3, rows, vocab), dtype=torch.float64)  # reused: fresh memory costs more than arithmetic
    with torch.no_grad():
        for first in range(0, num_rows, rows or 1):
            part = slice(first, min(first + rows, num_rows))
            inputs = student_logprobs[part], teacher_logprobs[part]
            _check_numbers(*inputs, first_row=first)
            beta[part], kl[part] = _blend_rows(*inputs, budgets[part], room, out=blended[part], first_row=first)
    return Blend(blended, beta, kl)


@dataclass(frozen=True)
class _Point:
    """The exponential family at one beta per row, all of shape (rows,): log sum_a exp(base + beta r), K and Var[r]."""

    beta: Tensor
    log_sum: Tensor
    kl: Tensor
    variance: Tensor

    def where(self, condition: Tensor, other: "_Point") -> "_Point":
        """Return this point in the rows that fulfil the condition, and the other elsewhere."""
        mine, others = vars(self), vars(other)
        return _Point(**{name: mine[name].where(condition, others[name]) for name in mine})

    def put(self, index: Tensor, other: "_Point") -> "_Point":
        """Return this point with some rows replaced."""
        mine, others = vars(self), vars(other)
        return _Point(**{name: mine[name].index_copy(0, index, others[name]) for name in mine})

    def rows(self, index: Tensor) -> "_Point":
        """Return the point of some of the rows."""
        return _Point(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class _Family:
    """p_S exp(beta r) of some rows, in float64.

    Args:
        base: log p_S, -inf where student or teacher cannot emit the token, shape (rows, vocab).
        ratio: r, 0 there, shape (rows, vocab).
        log_mass: log sum_a p_S(a) over all tokens, those too that base leaves out, shape (rows,).
        work: room for the weights, shape (rows, vocab).
    """

    base: Tensor
    ratio: Tensor
    log_mass: Tensor
    work: Tensor

    def at(self, beta: Tensor) -> _Point:
        """Evaluate at beta, shape (rows,): one exponential per token."""
        log_sum, mean, square = _moments(self.base, self.ratio, beta, self.work)
        kl = beta * mean - (log_sum - self.log_mass)  # K = beta A' - A, A being relative to the mass of p_S
        return _Point(beta, log_sum, kl.clamp_min(0.0), square - mean * mean)

    def logprobs(self, beta: Tensor, log_sum: Tensor) -> Tensor:
        """Return log mu_beta, shape (rows, vocab), in the room for the weights."""
        return _exponents(self.base, self.ratio, beta, self.work).sub_(log_sum[:, None])

    def rows(self, index: Tensor) -> "_Family":
        """Return the family of some of the rows."""
        base = self.base[index]
        return _Family(base, self.ratio[index], self.log_mass[index], self.work[: len(base)])


def _exponents(base: Tensor, ratio: Tensor, beta: Tensor, work: Tensor) -> Tensor:
    """Return base + beta r. Two passes, as addcmul with a broadcast factor is not vectorised: 0.4 of its time."""
    return torch.mul(ratio, beta[:, None], out=work).add_(base)


def _moments(base: Tensor, ratio: Tensor, beta: Tensor, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log sum w, E[r] and E[r^2] under the weights w = exp(base + beta r), each of shape (rows,)."""
    weights = _exponents(base, ratio, beta, work).exp_()
    total, log_shift = weights.sum(dim=-1), torch.zeros_like(beta)  # both (rows,)
    if not bool((total > 1e-250).all()):  # distributions far apart underflow between them; only those pay for a shift
        weights = _exponents(base, ratio, beta, work)
        log_shift = weights.amax(dim=-1).clamp_min(-1e300)
        total = weights.sub_(log_shift[:, None]).exp_().sum(dim=-1)
    mean = weights.mul_(ratio).sum(dim=-1) / total
    square = weights.mul_(ratio).sum(dim=-1) / total  # two passes: a batched product takes three times as long
    return total.log() + log_shift, mean, square


def _blend_rows(
    student: Tensor, teacher: Tensor, budget: Tensor, room: Tensor, *, out: Tensor, first_row: int
) -> tuple[Tensor, Tensor]:
    """Write log mu of a few rows to ``out``; return beta and K, both of shape (rows,)."""
    if not bool((budget > 0).any()):
        out.copy_(student)
        return budget, budget
    # Masks cost further passes over the vocabulary, for which only chunks that hold one pay.
    masked = min(float(student.amin()), float(teacher.amin())) == -float("inf")
    if masked:
        _check_sum("teacher", teacher.double().logsumexp(dim=-1), first_row)
        teacher = _restricted(teacher, student)
    family, start, end = _family(student, teacher, room[:, : len(student)], masked=masked)
    _check_sum("student", family.log_mass, first_row)
    if not masked:
        _check_sum("teacher", end.log_sum, first_row)
    best = _solve(family, budget, start, end)
    out.copy_(family.logprobs(best.beta, best.log_sum))
    # At the ends mu is one of the two: hand out their own numbers, not what exp and log left of them.
    for exact, rows in ((student, best.beta == 0.0), (teacher, best.beta == 1.0)):
        if bool(rows.any()):
            out[rows] = exact[rows].to(out.dtype)
    return best.beta, best.kl


def _restricted(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the teacher without the tokens that the student cannot emit; rows that had none of them are unchanged."""
    lost = (student == -float("inf")) & (teacher > -float("inf"))  # (rows, vocab)
    left = teacher.masked_fill(lost, -float("inf"))
    log_mass = left.logsumexp(dim=-1, keepdim=True)
    return left - log_mass.where(lost.any(dim=-1, keepdim=True) & log_mass.isfinite(), log_mass.new_zeros(()))


def _family(student: Tensor, teacher: Tensor, room: Tensor, *, masked: bool) -> tuple[_Family, _Point, _Point]:
    """Return the family of some rows and its points at beta 0 (just above it, if the teacher masks) and at beta 1."""
    base, ratio, work = room[0].copy_(student), room[1].copy_(teacher), room[2]
    if masked:
        # mu_beta has no mass where the teacher has none, for any beta > 0. So base drops these tokens, and K starts at
        # minus the log of what is left: start.kl > 0, which a small budget may not afford.
        missing, log_mass = ratio == -float("inf"), base.logsumexp(dim=-1)
        ratio.sub_(base).masked_fill_(missing, 0.0)
        base.masked_fill_(missing, -float("inf"))
    else:
        ratio.sub_(base)
    beta = torch.zeros_like(base[:, 0])
    log_sum, mean, square = _moments(base, ratio, beta, work)
    family = _Family(base, ratio, log_mass if masked else log_sum, work)
    start = _Point(beta, log_sum, (family.log_mass - log_sum).clamp_min(0.0), square - mean * mean)
    return family, start, family.at(torch.ones_like(beta))


def _solve(family: _Family, budget: Tensor, start: _Point, end: _Point) -> _Point:
    """Return the largest feasible point of every row. Only rows whose root lies between both ends are searched."""
    whole = (end.kl <= budget) & (budget > 0)
    none = ~(start.kl <= budget) | (budget == 0)  # also where the supports are disjoint, and K is NaN
    best = end.where(whole, replace(start, kl=start.kl * 0.0))
    inner = (~whole & ~none).nonzero()[:, 0]
    if len(inner) == len(budget):
        return _largest_feasible(family, budget, start, end)
    if len(inner):
        root = _largest_feasible(family.rows(inner), budget[inner], start.rows(inner), end.rows(inner))
        best = best.put(inner, root)
    return best


def _largest_feasible(family: _Family, budget: Tensor, start: _Point, end: _Point) -> _Point:
    """Return the point with K just below the budget, for rows whose start is within it and whose end is not."""
    low, high = start, end
    for step in range(_MAX_STEPS):
        middle = (low.beta + high.beta) / 2  # (rows,)
        beta = _interpolate(low, high, target=budget * (1.0 - _UNUSED / 2), origin=start)
        inside = (beta > low.beta) & (beta < high.beta)  # false for NaN: then bisect, which always halves
        if step >= _TRUSTED_STEPS and step % 2:
            inside = torch.zeros_like(inside)
        point = family.at(beta.where(inside, middle))
        feasible = point.kl <= budget
        low, high = (
            point.where(feasible, low),
            high.where(feasible, point),
        )  # K grows with beta, so the root stays within
        close = budget - low.kl <= _UNUSED * budget + _ROUNDING
        if bool((close | (high.beta - low.beta <= _ROUNDING * high.beta)).all()):
            break
    return low


def _interpolate(low: _Point, high: _Point, *, target: Tensor, origin: _Point) -> Tensor:
    """Return where K should reach the target, by the cubic through both points with their slopes.

    It is a cubic of g = sqrt(K - K(0)), in which beta is nearly linear, with the slopes dbeta/dg = 2 g / (beta Var[r]).
    """
    g_low, g_high, g = ((kl - origin.kl).clamp_min(0.0).sqrt() for kl in (low.kl, high.kl, target))
    at_origin = (2.0 / origin.variance).sqrt()
    slope_low = (2.0 * g_low / (low.beta * low.variance)).where(low.beta > 0, at_origin)
    slope_high = 2.0 * g_high / (high.beta * high.variance)
    width = g_high - g_low
    x = (g - g_low) / width  # where the target lies between both, in [0, 1]
    y = 1.0 - x
    # Cubic Hermite interpolation: beta = h00 beta_low + h01 beta_high + width (h10 slope_low + h11 slope_high).
    ends = y**2 * (1.0 + 2.0 * x) * low.beta + x**2 * (1.0 + 2.0 * y) * high.beta
    return ends + x * y * width * (y * slope_low - x * slope_high)


def _checked_budgets(student: Tensor, teacher: Tensor, budget: float | Tensor) -> Tensor:
    """Return one budget per row, shape (batch,), float64."""
    if student.ndim != 2 or student.shape != teacher.shape or not student.shape[1]:
        raise DistillationError(
            f"student and teacher have log-probabilities of shapes {tuple(student.shape)} and {tuple(teacher.shape)}, "
            "expected the same shape (batch, vocab): trim the padding rows of the longer vocabulary first"
        )
    budgets = torch.as_tensor(budget, dtype=torch.float64, device=student.device)
    if budgets.ndim and budgets.shape != student.shape[:1]:
        raise DistillationError(
            f"budget has shape {tuple(budgets.shape)}, expected one number or shape ({len(student)},)"
        )
    if not bool((budgets >= 0).all()):
        raise DistillationError(f"budget is {budgets.amin().item()}, expected nats, 0 or more")
    return budgets.expand(len(student)).clone()


def _check_numbers(student: Tensor, teacher: Tensor, *, first_row: int) -> None:
    for name, logprobs in (("student", student), ("teacher", teacher)):
        if not isfinite(logprobs.amax().item()):  # NaN wins
            row = int((~logprobs.amax(dim=-1).isfinite()).nonzero()[0]) + first_row
            raise DistillationError(
                f"row {row} of the {name}'s log-probabilities holds NaN, +inf or nothing but -inf: its weights are "
                "broken, its numbers overflow (compute in float32), or the learning rate is too high"
            )


def _check_sum(name: str, log_sum: Tensor, first_row: int) -> None:
    wrong = (log_sum.abs() > _MISSED_SUM).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DistillationError(
            f"row {row + first_row} of the {name}'s log-probabilities has log-sum-exp {float(log_sum[row]):.4g}, "
            "expected 0: pass log_softmax(logits), not logits"
        )
