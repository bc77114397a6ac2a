"""What tells candidates apart at several step sizes, how much of it is luck, and which settings follow from that."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from esalign.config.run import MOST_SIGMA
from esalign.errors import RewardError
from esalign.fitness.completions import Completed
from esalign.fitness.reliability import LEAST, WANTED
from esalign.run.first_step import FirstStep, compare
from esalign.types import Array, Completion

PAIRS = 4
GRID = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the configured sigma
CLEAR = 3.32  # the 99 % quantile of chi2 / PAIRS with PAIRS degrees of freedom: 95 % for the five of GRID
LEAST_RATE = 0.25
LEAST_PROMPTS = 24  # that are probed
MOST_LOST = 0.5
LEAST_JUDGED = 2  # prompts without an abstention


@dataclass(frozen=True)
class Signal:
    """What mirrored candidates x, -x of a step size earn on common prompts.

    Half the difference of a pair's mean rewards is what a search follows; what both lose alike is not.

    Args:
        step: what the candidates do to completions.
        reward: their mean reward.
        lost: the share that they lose of what the start earned on these prompts, above the least reward of the two;
            NaN where it earned nothing there, or was not judged.
        mirrored: correlation of the mean rewards of x and -x: -1 where rewards are linear around the start, 1 where
            only the distance from it matters; NaN where all are equal.
        half: mean square of half a pair's difference of mean rewards.
        noise: the share of a single prompt in that: ``half`` holds noise / prompts by chance.
        prompts: number of prompts without an abstention; below 2 nothing can be told, and numbers are NaN.
        of: number of prompts on which the rewards did not abstain at the start.
        equal: share of the prompts on which all candidates earn the same.
        tokens: generated tokens of a completion, on average.
    """

    step: FirstStep
    reward: float
    lost: float
    mirrored: float
    half: float
    noise: float
    prompts: int
    of: int
    equal: float
    tokens: float

    @property
    def luck(self) -> float:
        """What ``half`` holds by chance."""
        return self.noise / self.prompts if self.prompts else math.nan

    @property
    def variance(self) -> float:
        """The signal: variance of half a pair's difference beyond what the number of prompts explains, at least 0."""
        return max(self.half - self.luck, 0.0)

    @property
    def clear(self) -> bool:
        """Whether chance alone would give so much in less than one of a hundred cases."""
        return self.half > CLEAR * self.luck

    @property
    def usable(self) -> float:
        """The signal's standard deviation times the root of its share of all variance: what one generation can gain."""
        return self.variance / self.half**0.5 if self.half else 0.0

    @property
    def damages(self) -> bool:
        """Whether candidates break completions, lose more than half of what the start earned, or are not judged."""
        return self.step.too_large or self.lost > MOST_LOST or not self.judged

    @property
    def judged(self) -> bool:
        """Whether the rewards abstained on at most half of the prompts on which they did not at the start."""
        return self.prompts >= max(LEAST_JUDGED, self.of / 2)

    def flat(self, prompts: int) -> float:
        """Return the probability that none of so many prompts tells candidates apart."""
        return float(self.equal**prompts)


@dataclass(frozen=True)
class Proposal:
    """Settings that follow from signals.

    Args:
        sigma: the step size.
        prompts: problems of a generation.
        population: candidates of a generation.
        by_signal: whether a signal chose them; otherwise, sigma is the largest that does no damage.
        at_edge: whether sigma is the smallest or the largest that was tried, so that a better one may lie beyond.
    """

    sigma: float
    prompts: int
    population: int
    by_signal: bool
    at_edge: bool


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Args:
        start: mean reward of the start.
        signals: by step size, from small to large.
        proposal: the settings that follow.
        generations: of the run.
        seconds: search time of a run with these settings, from the probe's speed.
        adapts: whether the run chooses the number of problems itself, so that it is no part of the overrides.
    """

    start: float
    signals: tuple[Signal, ...]
    proposal: Proposal
    generations: int
    seconds: float
    adapts: bool = False

    @property
    def chosen(self) -> Signal:
        """The signal at the proposed sigma."""
        return next(one for one in self.signals if one.step.sigma == self.proposal.sigma)

    @property
    def prompts(self) -> int:
        """Number of prompts that were judged, at the step size where most were."""
        return max(one.prompts for one in self.signals)

    @property
    def overrides(self) -> str:
        """The proposal as arguments of `esalign run`."""
        found = self.proposal
        prompts = "" if self.adapts else f" fitness.prompts={found.prompts}"
        return f"optimizer.sigma={found.sigma:g}{prompts} optimizer.population={found.population}"

    def row(self) -> dict[str, Any]:
        """Return all numbers as JSON knows them, those of the table included."""
        signals = [
            {**asdict(one), "signal": one.variance**0.5, "usable": one.usable, "clear": one.clear}
            for one in self.signals
        ]
        return {**asdict(self), "signals": signals, "overrides": self.overrides}

    @property
    def concerns(self) -> tuple[str, ...]:
        """What makes the proposal doubtful."""
        found, prompts, texts = self.proposal, self.prompts, []
        if unjudged := [f"{one.step.sigma:g}" for one in self.signals if not one.judged]:
            texts.append(f"at sigma {', '.join(unjudged)} the rewards abstained on most prompts: taken for damage")
        if all(one.damages for one in self.signals):
            texts.append("every sigma that was tried does damage, so this is the smallest")
        elif not found.by_signal:
            more = "more prompts, which it takes by itself" if self.adapts else "more prompts (fitness.prompts)"
            texts.append(
                f"no signal is clear with {prompts} prompts, so sigma is the largest that does no damage: a search "
                f"will need {more}, or a reward that tells more completions apart"
            )
        if found.at_edge:
            texts.append(
                f"sigma {found.sigma:g} is at the edge of what was tried: probe again with "
                f"optimizer.sigma={found.sigma:g}"
            )
        return tuple(texts)


def measure(sigmas: Sequence[float], completed: Completed, *, samples: int) -> list[Signal]:
    """Measure the signal at each step size.

    Args:
        sigmas: the step sizes.
        completed: of the start, then of x and of -x for ``PAIRS`` directions, for each step size in turn; the samples
            of a prompt stand side by side.
        samples: completions of a prompt.

    Raises:
        RewardError: at no step size have two prompts rewards for all candidates.
    """
    start, *rows = completed.rows
    rewards = completed.rewards.reshape(len(completed.rewards), -1, samples)  # (candidates, prompts, samples)
    pairs = rewards[1:].reshape(len(sigmas), 2, PAIRS, -1, samples)
    groups = [rows[first : first + 2 * PAIRS] for first in range(0, len(rows), 2 * PAIRS)]
    signals = [
        _signal(compare(sigma, group, start), earned, rewards[0], _mean_tokens(group))
        for sigma, group, earned in zip(sigmas, groups, pairs, strict=True)
    ]
    if all(one.prompts < LEAST_JUDGED for one in signals):
        raise RewardError(
            f"at every sigma the rewards abstained on all of {rewards.shape[1]} prompts but one at most, expected at "
            f"least {LEAST_JUDGED} on which they do not: check that the reward fits the data, or raise fitness.prompts"
        )
    return signals


def _mean_tokens(rows: Sequence[Sequence[Completion]]) -> float:
    return float(np.mean([len(one.token_ids) for row in rows for one in row]))


def _signal(step: FirstStep, rewards: Array, start: Array, tokens: float) -> Signal:
    """Return the signal in rewards of shape (2, pairs, prompts, samples); the start's have shape (prompts, samples)."""
    judged, at_start = ~np.isnan(rewards).any(axis=(0, 1, 3)), ~np.isnan(start).any(axis=1)
    prompts, of = int(judged.sum()), int(at_start.sum())
    if prompts < LEAST_JUDGED:
        unknown = dict.fromkeys(("reward", "lost", "mirrored", "half", "noise", "equal"), math.nan)
        return Signal(step=step, prompts=prompts, of=of, tokens=tokens, **unknown)
    whole = rewards[:, :, judged].mean(axis=3)  # (2, pairs, prompts)
    halves, means = (whole[0] - whole[1]) / 2, whole.mean(axis=2)  # (pairs, prompts), (2, pairs)
    odd, even = (means[0] - means[1]) / 2, means.mean(axis=0) - means.mean()
    half, common = float(np.mean(odd**2)), float(np.mean(even**2))
    return Signal(
        step=step,
        reward=float(means.mean()),
        lost=_lost(rewards[:, :, judged & at_start], start[judged & at_start]),
        mirrored=(common - half) / (common + half) if common + half else math.nan,
        half=half,
        noise=float(halves.var(axis=1, ddof=1).mean()),
        prompts=prompts,
        of=of,
        equal=float(np.mean(np.ptp(whole, axis=(0, 1)) == 0)),
        tokens=tokens,
    )


def _lost(rewards: Array, start: Array) -> float:
    """Return the share that is lost of what the start earned above the least reward of both, NaN where that is none."""
    if not start.size:
        return math.nan
    least = float(min(rewards.min(), start.min()))
    above = float(start.mean()) - least
    nothing = above <= 1e-9 * max(1.0, abs(least))  # rounding
    return math.nan if nothing else 1 - (float(rewards.mean()) - least) / above


def propose(signals: Sequence[Signal], *, dim: int, prompts: int, most_prompts: int) -> Proposal:
    """Propose settings for a run.

    Sigma: of those that do no damage and whose signal is clear, the one with the most usable signal; where none is
    clear, the largest that does no damage, as signals grow with sigma until damage sets in. Prompts: so many that
    three tenths of the variance between candidates are signal. Population: CMA-ES's ``4 + 3 log(dim)``, and as many as
    let its mean learn at a rate of at least 1/4.

    Args:
        signals: by step size, from small to large.
        dim: length of the search vector.
        prompts: problems of a generation where no signal says how many.
        most_prompts: number of training problems.
    """
    whole = [one for one in signals if not one.damages]
    clear = [one for one in whole if one.clear]
    if clear:
        best = max(clear, key=lambda one: one.usable)
        wanted = 2 * best.noise / best.variance * WANTED / (1 - WANTED)  # of one candidate, not of half a pair
        prompts = max(_round_up(wanted, 8), LEAST)
    else:
        best = whole[-1] if whole else signals[0]
    return Proposal(
        sigma=best.step.sigma,
        prompts=min(prompts, most_prompts),
        population=_round_up(max(4 + 3 * math.log(dim), dim * LEAST_RATE**2 / 8), 4),
        by_signal=bool(clear),
        at_edge=best is signals[0] or (best is signals[-1] and 2 * best.step.sigma <= MOST_SIGMA),
    )


def _round_up(value: float, unit: int) -> int:
    return math.ceil(value / unit) * unit
