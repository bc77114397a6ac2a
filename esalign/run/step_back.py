"""Going back towards the start where completions that are drawn earn less than there."""

from collections.abc import Callable
from dataclasses import replace

from esalign.fitness.completions import mean_of_samples
from esalign.run.evaluate import HeldOut
from esalign.run.statistics import Estimate, paired_difference, within_noise
from esalign.types import Array

DRAWS = 8
"""Drawn completions of each validation problem."""
SHARES = (1.0, 0.85, 0.7)
"""Of the way from the start; see docs/benchmarks/tasks.md for what lies along it."""


def step_back(
    judge: Callable[[float, HeldOut, float], Array], validation: HeldOut, start: Array
) -> tuple[float, dict[float, Estimate]]:
    """Return the largest share of the way at which drawn completions earn no less than at the start, or the least.

    What raises greedy completions may lower drawn ones, the more the farther a search goes. Both change steadily on the
    straight line to the start, so a part of the way keeps most of the gain. Where it does not, nothing is given up.

    Args:
        judge: scores at a share of the way, 0 being the start, of problems completed at a temperature.
        validation: the problems.
        start: scores of their greedy completions at the start, shape (problems,).

    Returns:
        The share, and of each that was tried what drawn completions earn more than at the start.
    """
    drawn = replace(validation, examples=tuple(one for one in validation.examples for _ in range(DRAWS)))

    def earned(share: float) -> Array:
        return mean_of_samples(judge(share, drawn, 1.0).reshape(1, -1, DRAWS))[0]

    nothing, tried = earned(0.0), {}
    for share in SHARES:
        tried[share] = paired_difference(earned(share), nothing)
        if not tried[share].mean < 0:
            break
    keeps_gain = share == 1 or not within_noise(judge(share, validation, 0.0), start)
    return (share if keeps_gain else 1.0), tried
