"""Going back towards the start where completions that are drawn earn less than there."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from esalign.fitness.completions import mean_of_samples
from esalign.run.evaluate import HeldOut
from esalign.run.statistics import Estimate, paired_difference, within_noise
from esalign.types import Array

DRAWS = 8
"""Drawn completions of each validation problem."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the way from the start, where they are drawn."""
LEAST = 0.5
"""Of the way is kept in any case: with less of it, little is left of the gain."""


def step_back(
    judge: Callable[[float, HeldOut, float], Array], validation: HeldOut, start: Array
) -> tuple[float, dict[float, Estimate]]:
    """Estimate the largest share of the way at which drawn completions earn no less than at the start.

    What raises greedy completions may lower drawn ones, the more the farther a search goes. Both change steadily on the
    straight line to the start, so that a part of the way keeps much of the gain. Where greedy completions are no longer
    ahead of the start there by a standard error, nothing is given up, and neither is where drawn ones gain as much.

    Args:
        judge: scores at a share of the way, 0 being the start, of problems completed at a temperature.
        validation: the problems.
        start: scores of their greedy completions at the start, shape (problems,).

    Returns:
        The share, at least `LEAST`, and of `SHARES` that were tried what drawn completions earn more than at the start.
    """
    drawn = replace(validation, examples=tuple(one for one in validation.examples for _ in range(DRAWS)))

    def earned(share: float) -> Array:
        return mean_of_samples(judge(share, drawn, 1.0).reshape(1, -1, DRAWS))[0]

    nothing, everything = earned(0.0), earned(1.0)
    tried = {1.0: paired_difference(everything, nothing)}
    if tried[1.0].count == 0 or not within_noise(everything, nothing):  # nothing is known, or nothing is lost
        return 1.0, tried
    tried = {share: paired_difference(earned(share), nothing) for share in SHARES[:-1]} | tried
    share = furthest({0.0: 0.0} | {share: gain.mean for share, gain in tried.items() if gain.count})
    keeps_gain = share < 1 and not within_noise(judge(share, validation, 0.0), start)
    return (share if keeps_gain else 1.0), tried


def furthest(gains: Mapping[float, float]) -> float:
    """Return the largest share of the way where a parabola through what was measured has no loss, at least `LEAST`.

    Each measurement is noisy; the parabola has all of them decide. It has a rise of first order, and a loss of second.

    Args:
        gains: what was measured, by shares of the way in [0, 1].

    >>> furthest({0: 0.0, 0.25: 0.012, 0.5: 0.016, 0.75: 0.012, 1: 0.0}), furthest({0: 0.0, 0.5: 0.01, 1: -0.02})
    (1.0, 0.75)
    """
    curve = np.polynomial.Polynomial.fit(list(gains), list(gains.values()), deg=2)
    shares = np.linspace(LEAST, 1.0, 51)
    kept = shares[np.round(curve(shares) - curve(0.0), 9) >= 0]
    return round(float(kept[-1]), 2) if len(kept) else LEAST
