"""How much of the ranking of candidates is signal, and how many problems that takes."""

from dataclasses import dataclass

import numpy as np

from esalign.types import Array

WANTED = 0.3  # reliability: the share of signal in the variance between candidates
LEAST, MOST = 16, 400  # problems
MEMORY = 0.7  # weight of what was known before a generation
ROUNDS = 20
FASTEST = 1.5  # factor that the number of problems changes by, at most, in one generation


@dataclass
class ProblemCount:
    """Chooses how many problems a generation has: few while candidates differ much, more as they come near each other.

    The reward of candidate i on problem j is taken to be the sum of a part of i, a part of j, and noise. Analysis of
    variance tells the first from the last (Hoyt 1941, "Test reliability estimated by analysis of variance"; the same
    number is known as Cronbach's alpha). More problems divide the noise (Spearman 1910; Brown 1910).

    Args:
        count: problems of the next generation.
        signal: variance of the candidates' parts, smoothed; None before the first generation.
        noise: variance of the noise of one problem, smoothed.
    """

    count: int = LEAST
    signal: float | None = None
    noise: float = 0.0

    def note(self, rewards: Array) -> None:
        """Learn from a generation's rewards, shape (population, problems), NaN where there is none."""
        signal, noise = variances(rewards)
        if not np.isfinite(signal + noise):
            return
        weight = 0.0 if self.signal is None else MEMORY
        self.signal = weight * (self.signal or 0.0) + (1 - weight) * signal
        self.noise = weight * self.noise + (1 - weight) * noise
        # reliability = signal / (signal + noise / count), solved for count
        wanted = WANTED / (1 - WANTED) * self.noise / self.signal if self.signal > 0 else float("inf")
        low, high = max(LEAST, self.count / FASTEST), min(MOST, self.count * FASTEST)
        self.count = round(min(max(wanted, low), high))


def reliability(rewards: Array) -> float | None:
    """Return the share of signal in the variance between candidates, in [0, 1]; None where too little is known.

    Args:
        rewards: shape (population, problems), NaN where there is none.
    """
    signal, noise, share = _variances(rewards)
    total = max(signal, 0.0) + noise * share
    rounding = 1e-12 * float(np.nanmax(np.square(rewards), initial=0.0))
    return max(signal, 0.0) / total if total > rounding else None  # NaN is not above it either


def variances(rewards: Array) -> tuple[float, float]:
    """Return the variance of the candidates' true means, below 0 by chance where there is none, and the noise's.

    Args:
        rewards: shape (population, problems), NaN where there is none.

    Returns:
        Two NaN where too little is known to tell.
    """
    signal, noise, _ = _variances(rewards)
    return signal, noise


def _variances(rewards: Array) -> tuple[float, float, float]:
    """Return both variances, and what share of the noise's is in the mean of a candidate."""
    rewards = rewards[(~np.isnan(rewards)).sum(axis=1) > 1]
    rewards = rewards[:, (~np.isnan(rewards)).sum(axis=0) > 1]
    known, (candidates, problems) = ~np.isnan(rewards), rewards.shape
    freedom = known.sum() - candidates - problems + 1
    if candidates < 2 or problems < 2 or freedom < 1 or not known.any(axis=1).all():
        return float("nan"), float("nan"), float("nan")
    rows = np.zeros((candidates, 1))
    for _ in range(ROUNDS):  # fits rewards = rows + columns; one round is exact where nothing is missing
        columns = np.nanmean(rewards - rows, axis=0, keepdims=True)  # (1, problems)
        rows = np.nanmean(rewards - columns, axis=1, keepdims=True)  # (candidates, 1)
    noise = np.nansum(np.square(rewards - rows - columns)) / freedom
    share = float((1 / known.sum(axis=1)).mean())
    return float(rows.var(ddof=1) - noise * share), float(noise), share
