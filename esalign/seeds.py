"""Random streams."""

import numpy as np


def derive_seed(*parts: int) -> int:
    """Return a seed, 32 bits, that depends on all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
