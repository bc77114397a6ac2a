"""Means with intervals. Problems are the unit of sampling: several completions of one problem are averaged first."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from esalign.types import Array

Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over ``count`` problems."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


def estimate(scores: Sequence[float] | Array) -> Estimate:
    """Return the mean score with its interval: Wilson's for scores of 0 and 1, else the normal one.

    Args:
        scores: one number per problem; NaN (all rewards abstained) is left out.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = float(values.mean())
    return Estimate(mean, *_wilson(mean, n), n) if np.isin(values, (0.0, 1.0)).all() else _normal(values)


def paired_difference(after: Sequence[float] | Array, before: Sequence[float] | Array) -> Estimate:
    """Return the mean of after - before over the same problems, with its normal 95 % interval."""
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return _normal(differences[~np.isnan(differences)])


def best_of(rewards: Array, k: int) -> Array:
    """Return the expected best reward of k samples of each problem, drawn without replacement, shape (problems,).

    For rewards of 0 and 1 this is pass@k by the unbiased estimator ``1 - C(n - c, k) / C(n, k)`` of Chen et al. 2021
    (arXiv 2107.03374, equation 1), c of n samples being right. In general, the i-th smallest of n rewards is the best
    of ``C(i - 1, k - 1)`` of the ``C(n, k)`` choices.

    Args:
        rewards: shape (problems, samples); NaN (all rewards abstained) is left out.
        k: at least 1; a problem with fewer rewards has NaN.

    >>> best_of(np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, np.nan]]), 2).round(3)
    array([0.5, 1. ])
    """
    return np.array([_best_of(np.sort(row[~np.isnan(row)]), k) for row in rewards])


def _best_of(ascending: Array, k: int) -> float:
    n = len(ascending)
    if n < k:
        return float("nan")
    return float(sum(comb(i, k - 1) / comb(n, k) * reward for i, reward in enumerate(ascending)))


def within_noise(after: Sequence[float] | Array, before: Sequence[float] | Array) -> bool:
    """Tell whether scores on the same problems gained less than the standard error of that gain.

    >>> within_noise([1, 0, 1, 0], [0, 1, 1, 0]), within_noise([1, 1, 1, 0], [0, 0, 1, 0])
    (True, False)
    """
    gain = paired_difference(after, before)
    return not gain.mean > 0 or gain.mean < standard_error(gain)


def standard_error(estimate: Estimate) -> float:
    """Return the standard error of a mean with a normal interval."""
    return (estimate.high - estimate.mean) / Z95


def resolution(scores: Sequence[float] | Array) -> float:
    """Return the smallest gain over these scores that the same problems tell from noise (95 %).

    It takes the two scores of a problem for independent; as they are not, pairing can tell smaller gains. A single
    problem tells none.

    >>> round(resolution([0, 1] * 128), 3), round(resolution([0] * 256), 3), resolution([1])
    (0.086, 0.01, inf)
    """
    found = estimate(scores)
    return (found.high - found.low) / 2 * 2**0.5 if found.count > 1 else float("inf")


def _normal(values: Array) -> Estimate:
    """Return a mean with its normal interval, which is endless for fewer than two values."""
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    half = Z95 * float(values.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    low, high = (mean - half, mean + half) if n else (-half, half)
    return Estimate(mean, low, high, n)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval, which stays inside [0, 1] and has a width at shares of 0 and 1."""
    z2 = Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return centre - half, centre + half
