"""Going back towards the start where completions that are drawn earn less than there."""

from collections.abc import Callable, Sequence

from esalign.fitness.completions import mean_of_samples
from esalign.run.statistics import within_noise
from esalign.types import Array, Example

DRAWS = 4
"""Drawn completions of each validation problem."""
SHARES = (1.0, 0.85, 0.7)
"""Of the way from the start; see docs/benchmarks/tasks.md for what lies along it."""


def several(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return each problem as often as it is to be drawn.

    >>> [example.prompt for example in several([Example("a"), Example("b")])]
    ['a', 'a', 'a', 'a', 'b', 'b', 'b', 'b']
    """
    return tuple(example for example in examples for _ in range(DRAWS))


def harmless_share(earned: Callable[[float], Array]) -> float:
    """Return the largest share of the way to go without harm, or the least share.

    It does harm if drawn completions earn less than at the start, by more than the standard error of the difference.
    What raises greedy completions may lower drawn ones, the more the farther a search goes. Both change steadily on the
    straight line to the start, so a part of the way keeps most of the gain.

    Args:
        earned: rewards of the completions at a share of the way, 0 being the start, those of a problem side by side,
            shape (DRAWS * problems,).

    >>> import numpy as np
    >>> harmless_share(lambda share: np.arange(8.0) + share - 1.1 * share**2)
    0.85
    >>> harmless_share(lambda share: np.arange(8.0) - share)
    0.7
    """

    def by_problem(share: float) -> Array:
        return mean_of_samples(earned(share).reshape(1, -1, DRAWS))[0]

    start, [*shares, least] = by_problem(0.0), SHARES
    return next((share for share in shares if within_noise(start, by_problem(share))), least)
