"""Any optimiser of nevergrad, by its registered name.

Rapin and Teytaud (2018), "Nevergrad: A gradient-free optimization platform".
"""

import hashlib
import math
import random
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from esalign.errors import ConfigError, EsalignError, OptimizerError
from esalign.optimizers import checks
from esalign.registry import did_you_mean
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

    Raises:
        ConfigError: nevergrad registers no such name.
        OptimizerError: the optimiser fails with these settings, or needs a package that is not installed.
    """

    def __init__(
        self, *, dim: int, sigma: float, population: int, seed: int, name: str, budget: int | None = None
    ) -> None:
        checks.check_settings(dim=dim, sigma=sigma, population=population, seed=seed)
        budget = 100 * population if budget is None else budget
        checks.check_integer("budget", budget, 1)
        self._name, self._seed = name, int(seed)
        self._shape = (int(population), int(dim))
        self._settings: State = {
            "optimizer": f"nevergrad:{name}",
            "dim": int(dim),
            "population": int(population),
            "sigma": float(sigma),
            "budget": int(budget),
        }
        self._surroundings = Surroundings(name, self._seed)
        with self._surroundings.entered():
            self._search = _make(name, self._shape, self._seed, sigma=float(sigma), budget=int(budget))
        self._parameters: list[Any] = []  # nevergrad's own form of the asked candidates
        self._asked: Array | None = None
        self._history: list[Array] = []  # told fitness, (population,) a generation
        self._digest = hashlib.sha256()  # of all candidates so far
        self._mean = np.zeros(dim)

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64."""
        if self._asked is None:
            with self._surroundings.entered():
                self._parameters = [self._search.ask() for _ in range(self._shape[0])]
            self._asked = np.array([parameter.value for parameter in self._parameters], dtype=np.float64)
            self._digest.update(self._asked.tobytes())
        return self._asked.copy()

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Tell nevergrad the candidates' loss, which is the negated fitness."""
        _, fitness = checks.check_told(self._asked, candidates, fitness)
        with self._surroundings.entered():
            for parameter, value in zip(self._parameters, fitness, strict=True):
                self._search.tell(parameter, -float(value))
            self._mean = _recommended(self._search)  # here, as it may draw random numbers
        self._history.append(fitness)
        self._asked = None

    @property
    def mean(self) -> Array:
        """Nevergrad's recommendation, of its CMA-ES the mean, shape (dim,); zero before the first tell."""
        return self._mean.copy()

    @property
    def sigma(self) -> float:
        """The mutation size of construction: nevergrad does not say what became of it."""
        return float(self._settings["sigma"])

    def __reduce__(self) -> tuple[Any, ...]:
        return checks.reduce(self, self._settings, seed=self._seed, name=self._name)

    def state_dict(self) -> State:
        """Return everything that the future depends on: what was told."""
        return {
            **self._settings,
            "seed": self._seed,
            "pending": self._asked is not None,
            "fitness": np.array(self._history).reshape(-1, self._shape[0]),
            "digest": self._digest.hexdigest(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a state, by asking and telling all of it again."""
        checks.check_state(state, self._settings)
        pending, digest = checks.take(state, "pending"), checks.take(state, "digest")
        history = checks.take(state, "fitness", (len(checks.take(state, "fitness")), self._shape[0]))
        replay = Nevergrad(
            dim=self._shape[1],
            sigma=self._settings["sigma"],
            population=self._shape[0],
            seed=checks.take(state, "seed"),
            name=self._name,
            budget=self._settings["budget"],
        )
        for fitness in history:
            replay.tell(replay.ask(), fitness)
        if pending:
            replay.ask()
        if replay.state_dict()["digest"] != digest:
            raise OptimizerError(
                f"nevergrad:{self._name} asked other candidates when its run was replayed: this version of nevergrad "
                "or numpy differs from the one that saved the state, or the optimiser cannot be resumed at all"
            )
        vars(self).update(vars(replay))


def _make(name: str, shape: tuple[int, int], seed: int, *, sigma: float, budget: int) -> Any:
    """Return a new optimiser of nevergrad over (dim,), centred at zero, for a shape (population, dim)."""
    import nevergrad

    registry = nevergrad.optimizers.registry
    if name not in registry:
        raise ConfigError(
            f"unknown optimizer 'nevergrad:{name}'{did_you_mean(name, registry)}; "
            f"nevergrad registers {len(registry)} names, among them NGOpt, DiagonalCMA, TBPSA, TwoPointsDE and PSO"
        )
    population, dim = shape
    if registry[name].no_parallelization and population > 1:
        raise OptimizerError(f"nevergrad:{name} asks for one candidate at a time: population is {population}, not 1")
    space = nevergrad.p.Array(init=np.zeros(dim)).set_mutation(sigma=sigma)
    space.random_state = np.random.RandomState(seed)
    return registry[name](parametrization=space, budget=budget, num_workers=population)


def _recommended(search: Any) -> Array:
    """Return what an optimiser recommends, shape (dim,).

    Of CMA-ES (``DiagonalCMA`` and the like) nevergrad recommends the fittest candidate ever, which with noise is the
    luckiest: here it is the mean.
    """
    recommendation = search.provide_recommendation()
    inner: Any = getattr(search, "_es", None)  # pycma's, where it is one
    if getattr(inner, "countiter", 0):  # 0 before its first update, and after a restart
        child = search.parametrization.spawn_child()
        recommendation = child.set_standardized_data(np.array(inner.mean), reference=search.parametrization)
    return np.array(recommendation.value, dtype=np.float64)


class Surroundings:
    """What nevergrad's optimisers run in.

    Some of them draw from the global random streams of numpy and python: inside, these are private and seeded; outside,
    they are as if nothing had happened. Warnings, which are for people at a prompt, are silenced.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._streams = (np.random.RandomState(seed).get_state(), random.Random(seed).getstate())  # noqa: S311 - search

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside.

        Raises:
            OptimizerError: whatever went wrong inside, in one line.
        """
        outside = _global_streams()
        _set_global_streams(self._streams)
        try:
            with warnings.catch_warnings(), _adapted_libraries():
                warnings.simplefilter("ignore")
                yield
        except EsalignError:
            raise
        except Exception as error:  # its optimisers are of many makers, who raise what they like
            raise self._failure(error) from error
        finally:
            self._streams = _global_streams()
            _set_global_streams(outside)

    def _failure(self, error: Exception) -> OptimizerError:
        cause = error.__cause__ or error  # an optimiser that runs in a thread has its errors wrapped
        if isinstance(cause, ModuleNotFoundError):
            return OptimizerError(
                f"nevergrad:{self._name} needs the package {cause.name!r}, which is not installed: "
                "see nevergrad's documentation for its optional packages"
            )
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        return OptimizerError(f"nevergrad:{self._name} failed: {reason}")


@contextmanager
def _adapted_libraries() -> Iterator[None]:
    """Change two things for nevergrad's calls that cannot be chosen from outside.

    From 300 dimensions on, pycma turns to two-point adaptation of the step size, which fails unless a population is
    asked as a whole, and nevergrad asks for single candidates. And nevergrad runs sequential optimisers in threads that
    would keep the program from ending.
    """
    from cma import evolution_strategy
    from nevergrad.optimization import recaster

    thread = recaster._MessagingThread  # noqa: SLF001 - it has no other handle

    class EndingThread(thread):  # type: ignore[misc, valid-type]  # nevergrad has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.daemon = True

    usual = evolution_strategy.TPA_dimension
    evolution_strategy.TPA_dimension, recaster._MessagingThread = math.inf, EndingThread  # noqa: SLF001 - as above
    try:
        yield
    finally:
        evolution_strategy.TPA_dimension, recaster._MessagingThread = usual, thread  # noqa: SLF001 - as above


def _global_streams() -> tuple[Any, Any]:
    return np.random.get_state(), random.getstate()  # noqa: NPY002 - the global stream is meant


def _set_global_streams(streams: tuple[Any, Any]) -> None:
    np.random.set_state(streams[0])  # noqa: NPY002 - the global stream is meant
    random.setstate(streams[1])
