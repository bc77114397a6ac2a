"""Any optimiser of nevergrad, by its registered name.

Rapin and Teytaud (2018), "Nevergrad: A gradient-free optimization platform".
"""

import hashlib
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from esalign.errors import ConfigError, OptimizerError
from esalign.optimizers import checks
from esalign.plugins import did_you_mean
from esalign.types import Array, State


class Nevergrad:
    """Ask nevergrad for one candidate after the other, and tell it their negated fitness.

    Nevergrad's optimisers are arbitrary objects, which have no state but a pickle. So the state here is what they were
    told: to resume is to ask and tell it all again. That takes as long as all calls of `ask` and `tell` took so far
    (evaluating candidates is not repeated), and it is checked that the same candidates come out.

    Args:
        dim: length of the search vector.
        sigma: nevergrad's mutation size in each coordinate.
        population: candidates of a generation; nevergrad's ``num_workers``.
        seed: of the optimiser's random stream.
        name: what nevergrad's registry calls the optimiser, e.g. ``TwoPointsDE``.
        budget: evaluations of the whole run, by which some optimisers plan; 100 generations unless given. Nothing stops
            when it is spent.
    """

    def __init__(
        self, *, dim: int, sigma: float, population: int, seed: int, name: str, budget: int | None = None
    ) -> None:
        checks.check_settings(dim=dim, sigma=sigma, population=population, seed=seed)
        budget = 100 * population if budget is None else budget
        checks.check_integer("budget", budget, 1)
        self._shape = (int(population), int(dim))
        self._settings: State = {
            "optimizer": f"nevergrad:{name}",
            "dim": int(dim),
            "population": int(population),
            "sigma": float(sigma),
            "seed": int(seed),
            "budget": int(budget),
        }
        self._name = name
        self._begin()

    def _begin(self) -> None:
        """Go to the start of the run."""
        self._global_randomness = _GlobalRandomness(self._settings["seed"])
        with self._global_randomness, _quiet():
            self._search = _make(self._name, self._shape, self._settings)
        self._parameters: list[Any] = []  # nevergrad's own form of the asked candidates
        self._asked: Array | None = None
        self._history: list[Array] = []  # told fitness, (population,) a generation
        self._digest = hashlib.sha256()  # of all candidates so far
        self._mean = np.zeros(self._shape[1])

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64."""
        if self._asked is None:
            with self._global_randomness, _quiet():
                self._parameters = [self._search.ask() for _ in range(self._shape[0])]
            self._asked = np.array([parameter.value for parameter in self._parameters], dtype=np.float64)
            self._digest.update(self._asked.tobytes())
        return self._asked.copy()

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Tell nevergrad the candidates' loss, which is the negated fitness."""
        _, fitness = checks.check_told(self._asked, candidates, fitness)
        with self._global_randomness, _quiet():
            for parameter, value in zip(self._parameters, fitness, strict=True):
                self._search.tell(parameter, -float(value))
            recommendation = self._search.provide_recommendation()  # here, as it may draw random numbers
        self._mean = np.array(recommendation.value, dtype=np.float64)
        self._history.append(fitness)
        self._asked = None

    @property
    def mean(self) -> Array:
        """Nevergrad's recommendation, shape (dim,); zero before the first tell."""
        return self._mean.copy()

    @property
    def sigma(self) -> float:
        """The mutation size of construction: nevergrad does not tell what became of it."""
        return float(self._settings["sigma"])

    def state_dict(self) -> State:
        """Return everything that the future depends on: what was told."""
        return {
            **self._settings,
            "fitness": np.array(self._history).reshape(-1, self._shape[0]),
            "pending": self._asked is not None,
            "digest": self._digest.hexdigest(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a state, by asking and telling all of it again."""
        checks.check_state(state, self._settings)
        pending, digest = checks.take(state, "pending"), checks.take(state, "digest")
        history = checks.take(state, "fitness", (len(checks.take(state, "fitness")), self._shape[0]))
        replay = Nevergrad(
            dim=self._shape[1],
            population=self._shape[0],
            name=self._name,
            **{name: self._settings[name] for name in ("sigma", "seed", "budget")},
        )
        for fitness in history:
            replay.tell(replay.ask(), fitness)
        if pending:
            replay.ask()
        if replay._digest.hexdigest() != digest:
            raise OptimizerError(
                f"{self._settings['optimizer']} asked other candidates when its run was replayed: it cannot be resumed "
                "with this version of nevergrad and numpy, or not at all"
            )
        self.__dict__.update(replay.__dict__)


def _make(name: str, shape: tuple[int, int], settings: State) -> Any:
    import nevergrad

    registry = nevergrad.optimizers.registry
    if name not in registry:
        raise ConfigError(
            f"unknown optimizer 'nevergrad:{name}'{did_you_mean(name, registry)}; "
            f"nevergrad registers {len(registry)} names, among them NGOpt, DiagonalCMA, TBPSA, TwoPointsDE and PSO"
        )
    population, dim = shape
    if registry[name].no_parallelization and population > 1:
        raise OptimizerError(
            f"nevergrad:{name} evaluates one candidate at a time: population is {population}, expected 1"
        )
    space = nevergrad.p.Array(init=np.zeros(dim)).set_mutation(sigma=settings["sigma"])
    space.random_state = np.random.RandomState(settings["seed"])
    try:
        return registry[name](parametrization=space, budget=settings["budget"], num_workers=population)
    except (ImportError, ValueError, AssertionError) as error:
        raise OptimizerError(f"nevergrad:{name} refuses these settings: {error}") from error


class _GlobalRandomness:
    """While entered, the global random streams of numpy and python are private ones; after, they are as before.

    Some of nevergrad's optimisers draw from them.
    """

    def __init__(self, seed: int) -> None:
        self._mine = (np.random.RandomState(seed).get_state(), random.Random(seed).getstate())  # noqa: S311 - for search

    def __enter__(self) -> None:
        self._theirs = (np.random.get_state(), random.getstate())  # noqa: NPY002 - the global one is meant
        self._set(self._mine)

    def __exit__(self, *_: object) -> None:
        self._mine = (np.random.get_state(), random.getstate())  # noqa: NPY002 - the global one is meant
        self._set(self._theirs)

    @staticmethod
    def _set(states: tuple[Any, Any]) -> None:
        np.random.set_state(states[0])  # noqa: NPY002 - the global one is meant
        random.setstate(states[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence nevergrad's warnings, which are for people at a prompt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
