"""Majority vote: what most of a problem's completions give as their final answer."""

from collections.abc import Sequence

import numpy as np

from esalign.rewards.final import bare_words, final_answer, number_of
from esalign.rewards.number import read_number
from esalign.rewards.reasoning_gym import extract_solution
from esalign.types import Array


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
