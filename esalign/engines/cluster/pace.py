"""How long units usually take, whoever does them, and how much slower than that a worker is."""

from collections import deque

import numpy as np

RECENT = 256  # units that the usual time comes from
SMOOTHING = 0.5  # weight of a worker's newest unit in its slowness


class Pace:
    """The usual seconds of a unit by its size: a start-up and a time per completion, fitted to recent units."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._start = self._each = 0.0

    def note(self, size: int, seconds: float) -> None:
        """Learn from a unit; a slow worker's seconds are to be given as what a usual one would have taken."""
        self._recent.append((float(size), seconds))
        sizes, times = np.array(self._recent).T
        spread = sizes - sizes.mean()
        each = float(spread @ times / (spread @ spread)) if spread.any() else 0.0
        start = float(times.mean() - each * sizes.mean())
        if each <= 0.0 or start < 0.0:  # no line through the origin's right side: proportional to the size
            start, each = 0.0, float(times.sum() / sizes.sum())
        self._start, self._each = start, each

    def usual(self, size: int) -> float | None:
        """Return the seconds that a unit of a size takes, None before any was done."""
        return max(1e-9, self._start + self._each * size) if self._recent else None

    def slowness(self, before: float | None, size: int, seconds: float) -> float:
        """Return a worker's slowness (1 is usual) after a unit, given what it was before."""
        ratio = seconds / (self.usual(size) or seconds or 1.0)
        return ratio if before is None else SMOOTHING * ratio + (1 - SMOOTHING) * before
