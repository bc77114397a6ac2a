"""Every random stream of a run by its use, so that no two uses can share one by accident."""

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What a stream is for. The numbers are part of the checkpoints' meaning: new uses are added at the end."""

    SPLITS = 1
    SUBSETS = 2
    TASKS = 3
    BATCHES = 4
    OPTIMIZER = 5
    GENERATION = 6
    ROLLOUTS = 7
    VALIDATION = 8
    TEST = 9
    PROBE = 10
    KL_TO_START = 11
    NEW_ADAPTER = 12
    TIE = 13
    FIRST_STEP = 14
    KL_BUDGET = 15


def derive(seed: int, use: Use, *parts: int) -> int:
    """Return a seed, 32 bits, that depends on all of its arguments.

    >>> derive(0, Use.TEST) == derive(0, Use.TEST), derive(0, Use.TEST) == derive(0, Use.PROBE)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, use, *parts)).generate_state(1)[0])


def generator(seed: int, use: Use, *parts: int) -> np.random.Generator:
    """Return the random stream of a use; parts tell its members apart, as an epoch's number."""
    return np.random.default_rng((seed, use, *parts))
