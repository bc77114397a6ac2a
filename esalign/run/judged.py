"""What one model wrote for held-out problems, several times each, and what it was worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esalign.fitness.completions import Completed
from esalign.rewards.final import bare_words, final_answer, number_of
from esalign.rewards.number import read_number
from esalign.rewards.reasoning_gym import extract_solution
from esalign.run.instructions import Instructions
from esalign.run.statistics import Estimate, best_of, estimate, paired_difference
from esalign.types import Array, Completion, Example


@dataclass(frozen=True)
class Against:
    """A model against the start, problem by problem.

    Args:
        gain: of the mean reward.
        gained: number of problems with a higher mean reward.
        lost: number of problems with a lower one.
        longer: difference of the mean lengths in tokens.
    """

    gain: Estimate
    gained: int
    lost: int
    longer: Estimate


@dataclass(frozen=True)
class Judged:
    """A model's completions of problems, with their rewards.

    Args:
        name: the model: ``start``, or an adapter.
        examples: the problems.
        completed: one row of completions, those of a problem side by side.
        maths: whether the vote is over final answers as the reward ``math`` finds them.
        seconds: of generation and scoring.
        load_seconds: of loading the engine and comparing it with transformers.
        note: what the user should know of the model; empty for nothing.
        instructions: which instructions were followed, where the reward ``ifeval`` judged.
    """

    name: str
    examples: Sequence[Example]
    completed: Completed
    maths: bool = False
    seconds: float = 0.0
    load_seconds: float = 0.0
    note: str = ""
    instructions: Instructions | None = None

    @property
    def rewards(self) -> Array:
        """Shape (problems, samples), NaN where all rewards abstained."""
        rewards: Array = self.completed.rewards[0].reshape(len(self.examples), -1)
        return rewards

    @property
    def samples(self) -> int:
        """Number of completions of each problem."""
        return self.rewards.shape[1]

    @property
    def scores(self) -> Array:
        """The mean reward of each problem, shape (problems,), NaN where all rewards abstained."""
        return _mean_of_known(self.rewards)

    @property
    def is_binary(self) -> bool:
        """Whether every reward is 0 or 1, so that the best of k is pass@k."""
        rewards = self.rewards
        return bool(np.isin(rewards[~np.isnan(rewards)], (0.0, 1.0)).all())

    @property
    def lengths(self) -> Array:
        """Tokens of each completion, shape (problems, samples)."""
        return np.array([len(one.token_ids) for one in self.completed.rows[0]]).reshape(len(self.examples), -1)

    @property
    def answers(self) -> list[list[str]]:
        """What each completion votes for, by problem and sample."""
        given = [voted_answer(one.text, maths=self.maths) for one in self.completed.rows[0]]
        return [given[begin : begin + self.samples] for begin in range(0, len(given), self.samples)]

    def best_of(self, k: int) -> Estimate:
        """Return the mean best reward of k samples: pass@k where rewards are 0 and 1."""
        return estimate(best_of(self.rewards, k))

    def majority(self) -> Estimate:
        """Return the mean reward of the most frequent answer."""
        return estimate(majority(self.rewards, self.answers))

    def completion(self, problem: int, sample: int) -> Completion:
        """Return one completion."""
        return self.completed.rows[0][problem * self.samples + sample]

    def against(self, start: "Judged") -> Against:
        """Compare it with the start, on the same problems."""
        difference = self.scores - start.scores
        return Against(
            gain=paired_difference(self.scores, start.scores),
            gained=int((difference > 0).sum()),
            lost=int((difference < 0).sum()),
            longer=paired_difference(self.lengths.mean(axis=1), start.lengths.mean(axis=1)),
        )


def group_by(examples: Sequence[Example], column: str) -> dict[Any, list[int]]:
    """Return {value of a column: numbers of its problems}, in the order of the values; a list counts by its elements.

    >>> group_by([Example("a", {"kind": ["x", "y", "x"]}), Example("b", {"kind": ["y"]})], "kind")
    {'x': [0], 'y': [0, 1]}
    """
    groups: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        value = example.columns.get(column)
        parts = value if isinstance(value, list | tuple) else [value]
        for part in dict.fromkeys(part if isinstance(part, str | int | float) else str(part) for part in parts):
            groups.setdefault(part, []).append(number)
    return dict(sorted(groups.items(), key=lambda item: _order(item[0])))


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def _mean_of_known(rewards: Array) -> Array:
    known = ~np.isnan(rewards)
    counts = known.sum(axis=1)
    return np.where(counts, np.nansum(rewards, axis=1) / np.maximum(counts, 1), np.nan)


def voted_answer(completion: str, *, maths: bool) -> str:
    r"""Return the answer that a completion votes for.

    Args:
        completion: what the model wrote.
        maths: take the final answer as the reward ``math`` finds it, a number by its value; else what stands in the
            last ``<answer>`` tags, or the whole text without them.

    >>> voted_answer(r"6 * 7 = 42, so \boxed{42.0}", maths=True), voted_answer(" B \n", maths=False)
    ('42', 'B')
    """
    if not maths:
        return extract_solution(completion)
    final = final_answer(completion)
    number = read_number(final.text) if final.place == "box" else number_of(final)  # a box may hold a pair, (1,2)
    return bare_words(final.text) if number is None else f"{number.value}{'%' if number.percent else ''}"


def majority(rewards: Array, answers: Sequence[Sequence[str]]) -> Array:
    """Return the reward of the most frequent answer of each problem, shape (problems,).

    Where several are equally frequent, or completions of one answer differ in reward, it is their mean: what one of
    them, drawn at random, would have. NaN where all rewards abstained.

    Args:
        rewards: shape (problems, samples); NaN abstained, and has no vote.
        answers: ``answers[j][s]``, what sample s of problem j answers.

    >>> majority(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, np.nan]]), [["4", "4", "5"], ["7", "6", "7"]])
    array([1. , 0.5])
    """
    return np.array([_vote(row, given) for row, given in zip(rewards, answers, strict=True)])


def _vote(rewards: Array, answers: Sequence[str]) -> float:
    votes: dict[str, list[float]] = {}
    for reward, answer in zip(rewards, answers, strict=True):
        if not np.isnan(reward):
            votes.setdefault(answer, []).append(float(reward))
    most = max(map(len, votes.values()), default=0)
    winners = [float(np.mean(given)) for given in votes.values() if len(given) == most]
    return float(np.mean(winners)) if winners else float("nan")
