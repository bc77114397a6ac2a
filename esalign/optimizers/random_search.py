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
        self._settings: State = {
            "optimizer": "random-search",
            "dim": int(dim),
            "population": int(population),
            "sigma": float(sigma),
        }
        self._shape = (int(population), int(dim))
        self._sigma = float(sigma)
        self._rng = generator(seed, Use.OPTIMIZER)
        self._asked: Array | None = None
        self._best = np.zeros(dim)
        self._best_fitness: float | None = None

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64."""
        if self._asked is None:
            self._asked = self._sigma * self._rng.standard_normal(self._shape)
        return self._asked.copy()

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Keep the fittest candidate."""
        asked, fitness = checks.check_told(self._asked, candidates, fitness)
        winner = int(np.argmax(fitness))
        if self._best_fitness is None or fitness[winner] > self._best_fitness:
            self._best = asked[winner].copy()
            self._best_fitness = float(fitness[winner])
        self._asked = None

    @property
    def mean(self) -> Array:
        """The fittest candidate so far, shape (dim,)."""
        return self._best.copy()

    @property
    def sigma(self) -> float:
        """The standard deviation of each coordinate; it never changes."""
        return self._sigma

    def __reduce__(self) -> tuple[Any, ...]:
        return checks.reduce(self, self._settings, seed=0)

    def state_dict(self) -> State:
        """Return everything that the future depends on."""
        return {
            **self._settings,
            "rng": self._rng.bit_generator.state,
            "asked": checks.copy_or_none(self._asked),
            "best": self._best.copy(),
            "best_fitness": self._best_fitness,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a state."""
        checks.check_state(state, self._settings)
        rng, asked = checks.take_generator(state), checks.take_asked(state, self._shape)
        best, best_fitness = checks.take(state, "best", self._shape[1:]), checks.take(state, "best_fitness")
        self._rng, self._asked, self._best, self._best_fitness = rng, asked, best, best_fitness
