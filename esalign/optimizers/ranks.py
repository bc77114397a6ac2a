"""Fitness as ranks."""

import numpy as np

from esalign.types import Array


def centred_ranks(fitness: Array) -> Array:
    """Return fitness, shape (population,), as ranks spread over [-1/2, 1/2]; equal fitness shares the mean rank.

    Salimans et al. (2017), arXiv 1703.03864, section 2.1, "fitness shaping": outliers and the scale of fitness lose
    their say.

    >>> centred_ranks(np.array([3.0, 100.0, 3.0]))
    array([-0.25,  0.5 , -0.25])
    """
    _, inverse, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2  # the mean rank of each distinct value, from 0
    return np.asarray(ranks[inverse] / (len(fitness) - 1) - 0.5)
