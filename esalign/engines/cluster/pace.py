"""How long units usually take, whoever does them, and how much slower than that a worker is."""

from collections import deque
from math import log2
from statistics import median

RECENT = 33  # units of about one size that the usual time comes from
SMOOTHING = 0.5  # weight of a worker's newest unit in its slowness


class Pace:
    """The usual seconds of a unit by its size: the median of recent units of about that size.

    A median, so that a few slow workers change nothing; by size, as engines that take as long for 32 completions as for
    256 and those that take eight times less both occur.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def note(self, size: int, seconds: float) -> None:
        """Learn from a unit; one of no completions, which only encodes prompts, tells nothing."""
        if size:
            self._recent.setdefault(_about(size), deque(maxlen=RECENT)).append(seconds)

    def usual(self, size: int) -> float | None:
        """Return the seconds that a unit of a size takes, None before any was done, and of none."""
        if not self._recent or size == 0:
            return None
        about = _about(size)
        return median(self._recent[min(self._recent, key=lambda known: (abs(known - about), known))])

    def slowness(self, before: float | None, size: int, seconds: float) -> float:
        """Return a worker's slowness (1 is usual) after a unit, given what it was before."""
        ratio = seconds / (self.usual(size) or seconds or 1.0)
        return ratio if before is None else SMOOTHING * ratio + (1 - SMOOTHING) * before


def _about(size: int) -> int:
    """Return the same number for all sizes that are within a factor of 1.4."""
    return round(2 * log2(size))
