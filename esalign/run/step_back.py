"""Going back towards the start where completions that are drawn earn less than there."""

from collections.abc import Callable, Sequence

import numpy as np

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
    """Return the largest share of the way where drawn completions earn no less than at the start, or the least share.

    What raises greedy completions may lower drawn ones, the more the farther a search goes. Both change steadily on the
    straight line to the start, so a part of the way keeps most of the gain.

    Args:
        earned: rewards of the same completions at a share of the way, 0 being the start, shape (completions,).

    >>> harmless_share(lambda share: np.array([0.5 + share - 1.1 * share**2]))
    0.85
    >>> harmless_share(lambda share: np.array([0.5 - share]))
    0.7
    """
    start, [*shares, least] = earned(0.0), SHARES
    return next((share for share in shares if np.nanmean(earned(share) - start) >= 0), least)
