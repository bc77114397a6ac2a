"""Going back towards the start where completions that are drawn earn less than there."""

from collections.abc import Callable, Sequence

from esalign.fitness.completions import mean_of_samples
from esalign.run.statistics import Estimate, paired_difference
from esalign.types import Array, Example

DRAWS = 8
"""Drawn completions of each validation problem."""
SHARES = (1.0, 0.85, 0.7)
"""Of the way from the start; see docs/benchmarks/tasks.md for what lies along it."""


def several(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return each problem as often as it is to be drawn, its copies side by side."""
    return tuple(example for example in examples for _ in range(DRAWS))


def step_back(earned: Callable[[float], Array], gains: Callable[[float], bool]) -> tuple[float, dict[float, Estimate]]:
    """Return the largest share of the way at which drawn completions earn no less than at the start, or the least.

    What raises greedy completions may lower drawn ones, the more the farther a search goes. Both change steadily on the
    straight line to the start, so a part of the way keeps most of the gain. Where it does not, nothing is given up.

    Args:
        earned: rewards of the completions at a share of the way, 0 being the start, those of a problem side by side,
            shape (DRAWS * problems,).
        gains: whether the measure that chose the end of the way is still ahead of the start at a share below 1.

    Returns:
        The share, and of each that was tried what drawn completions earn more than at the start.

    >>> import numpy as np
    >>> step_back(lambda share: np.arange(16.0) + share - 1.1 * share**2, lambda share: True)[0]
    0.85
    >>> step_back(lambda share: np.arange(16.0) - share, lambda share: share > 0.9)[0]
    1.0
    """

    def by_problem(share: float) -> Array:
        return mean_of_samples(earned(share).reshape(1, -1, DRAWS))[0]

    start, tried = by_problem(0.0), {}
    for share in SHARES:
        tried[share] = paired_difference(by_problem(share), start)
        if not tried[share].mean < 0:
            break
    return (share if share == 1 or gains(share) else 1.0), tried
