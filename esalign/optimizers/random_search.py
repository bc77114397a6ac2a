"""Random search: the baseline that every optimiser must beat."""

from typing import Any

import numpy as np

from esalign.optimizers import checks
from esalign.seeds import Use, generator
from esalign.types import Array, State


class RandomSearch:
    """Draw every candidate from N(0, sigma^2 I) and recommend the fittest that was ever seen.

    It learns nothing but its recommendation, whose fitness is over-estimated when fitness is noisy: it is the luckiest
    of all candidates.

    Args:
        dim: length of the search vector.
        sigma: standard deviation of each coordinate.
        population: candidates of a generation.
        seed: of the random stream.
    """

    def __init__(self, *, dim: int, sigma: float, population: int, seed: int) -> None:
        checks.check_settings(dim=dim, sigma=sigma, population=population, seed=seed)
        self._pending = checks.Pending(
            {"optimizer": "random-search", "dim": int(dim), "population": int(population), "sigma": float(sigma)},
            generator(seed, Use.OPTIMIZER),
        )
        self._sigma = float(sigma)
        self._best = np.zeros(dim)
        self._best_fitness: float | None = None

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64."""
        return self._pending.ask(lambda: self._sigma * self._pending.rng.standard_normal(self._pending.shape))

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Keep the fittest candidate."""
        asked, fitness = self._pending.tell(candidates, fitness)
        winner = int(np.argmax(fitness))
        if self._best_fitness is None or fitness[winner] > self._best_fitness:
            self._best = asked[winner].copy()
            self._best_fitness = float(fitness[winner])

    @property
    def mean(self) -> Array:
        """The fittest candidate so far, shape (dim,)."""
        return self._best.copy()

    @property
    def sigma(self) -> float:
        """The standard deviation of each coordinate; it never changes."""
        return self._sigma

    def __reduce__(self) -> tuple[Any, ...]:
        return checks.reduce(self, self._pending.settings, seed=0)

    def state_dict(self) -> State:
        """Return everything that the future depends on."""
        return {**self._pending.state_dict(), "best": self._best.copy(), "best_fitness": self._best_fitness}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state."""
        pending = self._pending.restored(state)
        best, best_fitness = checks.take(state, "best", pending.shape[1:]), checks.take(state, "best_fitness")
        self._pending, self._best, self._best_fitness = pending, best, best_fitness
