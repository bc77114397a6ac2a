"""Going back towards the start where completions that are drawn earn less than there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from esalign.fitness.completions import mean_of_samples
from esalign.run.evaluate import HeldOut, HeldOutResult
from esalign.run.statistics import Estimate, paired_difference, standard_error, within_noise
from esalign.types import Array, Completion, Prompt, Sampling

FIRST, MOST = 2, 8
"""Completions of each validation problem that are drawn at a place: at first, and at most."""
MIDDLE = 0.5
"""Of the way from the start, where they are drawn if that is in question."""
LEAST = 0.5
"""Of the way is kept in any case: with less of it, little is left of the gain."""

Judge = Callable[[float, HeldOut, Sampling], HeldOutResult]
"""Completes and scores problems at a share of the way, 0 being the start."""
LogProbs = Callable[[float, Sequence[Prompt], Sequence[Completion]], Array]
"""Gives the log-probability at a share of the way, at temperature 1, of each prompt's completion."""


def step_back(
    judge: Judge, log_probs: LogProbs, validation: HeldOut, start: Array, sampling: Sampling
) -> tuple[float, dict[float, Estimate]]:
    """Estimate the largest share of the way at which drawn completions earn no less than at the start.

    What raises greedy completions may lower drawn ones, the more the farther a search goes. Both change steadily on the
    straight line to the start, so that a part of the way keeps much of the gain. Where greedy completions are no longer
    ahead of the start there by a standard error, nothing is given up, and neither is where drawn ones gain as much.

    Args:
        judge: of places on the way.
        log_probs: of places on the way.
        validation: the problems.
        start: scores of their greedy completions at the start, shape (problems,).
        sampling: how they were completed.

    Returns:
        The share, at least `LEAST`, and of shares that were tried what drawn completions earn more than at the start.
    """
    drawn = Drawn(judge, log_probs, validation, sampling)
    drawn.draw((0.0, 1.0), FIRST)
    tried = drawn.gains()
    if tried[1.0].count == 0 or tried[1.0].low > 0:  # nothing is known, or they plainly gain
        return 1.0, tried
    more = drawn.needed() - FIRST
    drawn.draw((MIDDLE,), FIRST)
    if more:
        drawn.draw((0.0, MIDDLE, 1.0), more)
    gains = drawn.gains()
    if gains[MIDDLE].count == 0:
        return 1.0, tried
    tried = gains
    if tried[1.0].mean > standard_error(tried[1.0]):
        return 1.0, tried
    share = furthest({0.0: 0.0} | {share: gain.mean for share, gain in tried.items()})
    keeps_gain = share < 1 and not within_noise(judge(share, validation, sampling).scores, start)
    return (share if keeps_gain else 1.0), tried


def furthest(gains: Mapping[float, float]) -> float:
    """Return the largest share of the way where a parabola through what was measured has no loss, at least `LEAST`.

    It has a rise of first order, and a loss of second.

    Args:
        gains: what was measured, by shares of the way in [0, 1].

    >>> furthest({0: 0.0, 0.5: 0.016, 1: 0.0}), furthest({0: 0.0, 0.5: 0.01, 1: -0.02})
    (1.0, 0.75)
    """
    curve = np.polynomial.Polynomial.fit(list(gains), list(gains.values()), deg=2)
    shares = np.linspace(LEAST, 1.0, 51)
    kept = shares[np.round(curve(shares) - curve(0.0), 9) >= 0]
    return round(float(kept[-1]), 2) if len(kept) else LEAST


def contributions(log_p: Array, rewards: Array) -> Array:
    """Return what each completion says of what each place earns more than the first one; its mean is that gain.

    Most completions are about as likely at one place as at another, and tell nothing of how the places differ but
    noise. So each counts at all places, by how likely it is there: ``(p_s - p_0) / q (r - b)``, where q is the mean of
    its probabilities p at all places (the balance heuristic of Veach and Guibas, "Optimally combining sampling
    techniques for Monte Carlo rendering", 1995). No p / q exceeds the number of places, and where no place draws what
    another does, this is a difference of means.

    A b that does not depend on the completion leaves the mean as it is: b is the mean reward of the problem's other
    completions, drawn towards that of all problems (in which the completion hardly counts) by as much as it is luck.

    Args:
        log_p: the log-probability of each completion at each place, shape (places, places where drawn, problems,
            draws), at least two draws.
        rewards: shape (places where drawn, problems, draws), NaN where they abstained.

    Returns:
        Shape (places, places where drawn, problems, draws), NaN where rewards abstained.

    >>> rewards = np.array([[[1.0, 0.0]], [[1.0, 1.0]]])
    >>> never = np.full((1, 2), -np.inf)
    >>> apart = np.array([[np.zeros((1, 2)), never], [never, np.zeros((1, 2))]])  # neither draws what the other does
    >>> contributions(apart, rewards).mean(axis=(1, 2, 3))
    array([0. , 0.5])
    """
    weights = np.exp(log_p - np.logaddexp.reduce(log_p, axis=0) + np.log(len(log_p)))
    return (weights - weights[0]) * (rewards - _expected(rewards))


def _expected(rewards: Array) -> Array:
    """Guess each reward from the others of its problem, all places alike, and from all problems (James and Stein)."""
    known = ~np.isnan(rewards)
    overall = float(rewards[known].mean()) if known.any() else 0.0
    rewards = np.where(known, rewards, overall)
    places, _, draws = rewards.shape
    means = rewards.mean(axis=2, keepdims=True)  # (places, problems, 1)
    others = (draws * means - rewards) / (draws - 1)  # of the same place, itself left out
    of_problem = (means.sum(axis=0) - means + others) / places
    luck = float(rewards.var(axis=2, ddof=1).mean()) / (places * draws - 1)
    spread = float(of_problem.var(axis=1).mean())  # of problems, and luck
    return overall + (max(0.0, 1 - luck / spread) if spread > 0 else 0.0) * (of_problem - overall)


@dataclass(frozen=True)
class _Batch:
    """Completions that were drawn at a place, so many of each problem.

    Args:
        share: of the way, where they were drawn.
        prompts: of each of them, one problem's behind another's.
        completions: they.
        rewards: theirs, shape (problems, draws).
        log_probs: theirs, by the share of the way, same shape.
    """

    share: float
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    rewards: Array
    log_probs: dict[float, Array]


class Drawn:
    """Completions of problems that are drawn at places on the way, and how likely they are at each of these places."""

    def __init__(self, judge: Judge, log_probs: LogProbs, problems: HeldOut, sampling: Sampling) -> None:
        # Weights need the model's own distribution.
        self._sampling = replace(sampling, temperature=1.0, top_p=1.0, top_k=0, logprob=True)
        self._judge, self._log_probs, self._problems = judge, log_probs, problems
        self._batches: list[_Batch] = []

    def draw(self, shares: Sequence[float], count: int) -> None:
        """Draw so many more completions of each problem, at each of these places from random numbers of its own."""
        repeated = tuple(one for one in self._problems.examples for _ in range(count))
        prompts = [example.prompt for example in repeated]
        for share in shares:
            sampling = replace(self._sampling, offset=sum(batch.rewards.size for batch in self._batches))
            result = self._judge(share, replace(self._problems, examples=repeated), sampling)
            own = [completion.logprob for completion in result.completions]
            log_probs = {} if None in own else {share: np.array(own, dtype=np.float64).reshape(-1, count)}
            rewards = result.scores.reshape(-1, count)
            self._batches.append(_Batch(share, prompts, result.completions, rewards, log_probs))
        for place in self._places:
            self._read(place)

    def gains(self) -> dict[float, Estimate]:
        """Estimate what completions drawn at each place but the start earn more than there."""
        parts = contributions(*self._tables())
        of_problems = [mean_of_samples(of_place).mean(axis=0) for of_place in parts]  # each (problems,)
        estimates = [paired_difference(gains, np.zeros_like(gains)) for gains in of_problems]
        return dict(list(zip(self._places, estimates, strict=True))[1:])

    def needed(self) -> int:
        """Return the draws of each place with which weights tell the gain at the end as well as `MOST` without.

        Rather too many: that completions of a problem are expected from one another spreads what they say.
        """
        log_p, rewards = self._tables()
        known = ~np.isnan(rewards).any(axis=(0, 2))
        plain = float(rewards[:, known].var(axis=2).sum())
        weighted = float(contributions(log_p, rewards)[-1][:, known].var(axis=2).sum()) / len(rewards) ** 2
        if not known.any():
            return MOST
        return int(np.clip(ceil(MOST * weighted / plain), FIRST, MOST)) if plain > 0 else FIRST

    def _read(self, place: float) -> None:
        """Find how likely completions are at a place, of which that is not known."""
        unknown = [batch for batch in self._batches if place not in batch.log_probs]
        if not unknown:
            return
        prompts = [prompt for batch in unknown for prompt in batch.prompts]
        found = self._log_probs(place, prompts, [one for batch in unknown for one in batch.completions])
        ends = np.cumsum([len(batch.completions) for batch in unknown])[:-1]
        for batch, values in zip(unknown, np.split(found, ends), strict=True):
            batch.log_probs[place] = values.reshape(batch.rewards.shape)

    @property
    def _places(self) -> list[float]:
        return sorted({batch.share for batch in self._batches})

    def _tables(self) -> tuple[Array, Array]:
        """Return log-probabilities and rewards as `contributions` takes them; all places have equally many draws."""
        of_places = [[batch for batch in self._batches if batch.share == place] for place in self._places]
        rewards = [np.concatenate([batch.rewards for batch in drawn], axis=1) for drawn in of_places]
        log_p = [
            [np.concatenate([batch.log_probs[place] for batch in drawn], axis=1) for drawn in of_places]
            for place in self._places
        ]
        return np.array(log_p), np.array(rewards)
