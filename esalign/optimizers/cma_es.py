"""CMA-ES, by pycma: full or diagonal covariance.

Hansen (2016), "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; Ros and Hansen (2008), "A Simple
Modification in CMA-ES Achieving Linear Time and Space Complexity", for the diagonal one.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from esalign.errors import OptimizerError
from esalign.optimizers import checks
from esalign.optimizers.ranks import centred_ranks
from esalign.seeds import Use, generator
from esalign.space.imports import import_pycma
from esalign.types import Array, State

Covariance = Literal["auto", "full", "diagonal"]
Recombination = Literal["auto", "all", "better-half"]

LARGEST_FULL = 200
"""Dimensions up to which ``auto`` is a full covariance and the better half. A full covariance's learning rate falls
with dim^2, a diagonal one's with dim: with 24 candidates and 160 generations, the full one was ahead at 32 dimensions,
level at 128 and behind at 256."""

SETTLED = 30
"""Generation from which on the mean has its last learning rate."""

_EIGEN = ("C", "B", "D")  # the covariance C = B diag(D^2) B^T, eigenvectors and roots of eigenvalues updated lazily


class CmaEs:
    """Learn a Gaussian's mean, covariance and step size from the ranking of its samples.

    The step size is adapted by path length (CSA) in every dimension. (pycma turns to two-point adaptation from 300
    dimensions on, which judges the step size by two noisy evaluations.) Nothing ever stops the search.

    Args:
        dim: length of the search vector, at least 2.
        sigma: first standard deviation of each coordinate.
        population: candidates of a generation, at least 4.
        seed: of the random stream.
        covariance: ``full`` learns all correlations: O(dim^2) memory, O(dim^3) time at each update of its eigenvectors.
            ``diagonal`` learns a scale for each coordinate, with learning rates that are larger by about dim / 3.
            ``auto`` is full up to 200 dimensions.
        recombination: whom the mean moves to. ``better-half`` is the textbook's weighted mean of the better half of the
            candidates. ``all`` counts the worse half too, by its mirror image through the mean: what is bad in one
            direction is taken to be good in the other. With many more dimensions than candidates that holds well
            enough, and halves the square of the mean's random walk; but no curvature can be learnt from it.
            ``auto`` is all above 200 dimensions.
        mean_rate: learning rate of the mean, in (0, 1]. None lets it fall to `default_mean_rate`: in generation t,
            those without a ranking not counted, it is larger by ``sqrt(SETTLED / t)``, as far as `most_mean_rate` goes.
            At first there is more to learn in a step than noise to average out.
        step_damping: factor on the damping of the step size, positive; above 1, sigma changes more slowly. At the
            textbook's 1, noise lets sigma grow and the mean stray, which costs the embedded model sampled accuracy.
    """

    def __init__(
        self,
        *,
        dim: int,
        sigma: float,
        population: int,
        seed: int,
        covariance: Covariance = "auto",
        recombination: Recombination = "auto",
        mean_rate: float | None = None,
        step_damping: float = 10.0,
    ) -> None:
        checks.check_settings(dim=dim, sigma=sigma, population=population, seed=seed, least_population=4)
        if dim < 2:
            raise OptimizerError(
                "cma-es needs a search space of at least 2 numbers, got one of 1: set space.tie to at least 2, or "
                "search with another optimizer, such as openai-es"
            )
        checks.check_number("step_damping", step_damping, above=0.0)
        self._diagonal = _choose(covariance, "covariance", ("full", "diagonal"), dim) == "diagonal"
        self._all = _choose(recombination, "recombination", ("better-half", "all"), dim) == "all"
        if mean_rate is not None:
            checks.check_number("mean_rate", mean_rate, above=0.0, most=1.0)
        settings: State = {
            "optimizer": "cma-es",
            "dim": int(dim),
            "population": int(population),
            "covariance": "diagonal" if self._diagonal else "full",
            "recombination": "all" if self._all else "better-half",
            "mean_rate": None if mean_rate is None else float(mean_rate),
            "step_damping": float(step_damping),
        }
        self._pending = checks.Pending(settings, generator(seed, Use.OPTIMIZER))
        self._es = self._make(float(sigma), self._pending.rng)

    def _make(self, sigma: float, rng: np.random.Generator) -> Any:
        cma = import_pycma()
        settings = self._pending.settings
        options = {
            "popsize": settings["population"] * (2 if self._all else 1),
            "CMA_diagonal": self._diagonal,
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "CSA_dampfac": settings["step_damping"],
            "CMA_mirrors": 0,
            "conditioncov_alleviate": False,  # it would change the coordinates under the state
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": math.nan,  # leaves numpy's global random state alone
            "verbose": -9,
            "verb_log": 0,
        }
        return _quietly(cma.CMAEvolutionStrategy, np.zeros(settings["dim"]), sigma, options)

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64."""
        number = self._pending.shape[0]
        return self._pending.ask(lambda: np.array(_quietly(self._es.ask, number), dtype=np.float64))

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Update mean, covariance and step size from the ranking of the candidates.

        A generation of equally fit candidates has no ranking: it changes nothing.
        """
        asked, fitness = self._pending.tell(candidates, fitness)
        if np.ptp(fitness) == 0:
            return
        if self._all:
            images = 2 * self.mean - asked
            ranks = centred_ranks(fitness)
            asked, fitness = np.concatenate([asked, images]), np.concatenate([ranks, -ranks])
        self._es.sp.cmean = self._mean_rate(self._es.countiter + 1)
        # check_points=False: pycma need not look the candidates up and clip unknown ones
        _quietly(self._es.tell, list(asked), list(-fitness), check_points=False)

    def _mean_rate(self, generation: int) -> float:
        """Return the learning rate of a generation, 1 being the first."""
        given = self._pending.settings["mean_rate"]
        if given is not None:
            return float(given)
        population, dim = self._pending.shape
        solutions = self._es.popsize
        last = default_mean_rate(dim, population, solutions)
        return max(last, min(last * math.sqrt(SETTLED / generation), most_mean_rate(dim, solutions)))

    @property
    def mean(self) -> Array:
        """The mean of the distribution, shape (dim,)."""
        return np.array(self._es.mean, dtype=np.float64)

    @property
    def sigma(self) -> float:
        """The root mean square of the coordinates' standard deviations."""
        return float(np.sqrt(np.mean(np.square(self._es.stds))))

    def __reduce__(self) -> tuple[Any, ...]:
        return checks.reduce(self, self._pending.settings, seed=0, sigma=self._es.sigma)

    def state_dict(self) -> State:
        """Return everything that the future depends on."""
        es = self._es
        state: State = {
            **self._pending.state_dict(),
            "generation": int(es.countiter),
            "sigma": float(es.sigma),
            "mean": np.array(es.mean),
            "pc": np.array(es.pc),
            "ps": np.array(es.adapt_sigma.ps),
        }
        if self._diagonal:
            return {**state, "scaling": np.broadcast_to(es.sigma_vec.scaling, self._pending.shape[1:]).copy()}
        counts = {"updates": int(es.sm.count_tell), "updates_at_eigen": int(es.sm.last_update)}
        return {**state, **counts, **{name: np.array(getattr(es.sm, name)) for name in _EIGEN}}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state."""
        pending = self._pending.restored(state)
        es = self._make(float(checks.take(state, "sigma")), pending.rng)
        _quietly(es.ask)  # starts the clock that pycma's tell reads; its draws are forgotten
        pending.rng.bit_generator.state = state["rng"]
        vector = pending.shape[1:]
        es.mean, es.pc = checks.take(state, "mean", vector), checks.take(state, "pc", vector)
        es.mean_old = es.mean
        es.countiter = es.adapt_sigma._ps_updated_iteration = int(checks.take(state, "generation"))  # noqa: SLF001 - all
        es.adapt_sigma.ps = checks.take(state, "ps", vector)  # of pycma's state is restored, private or not
        (self._load_scaling if self._diagonal else self._load_covariance)(es, state)
        self._es, self._pending = es, pending

    def _load_scaling(self, es: Any, state: State) -> None:
        es.sigma_vec *= checks.take(state, "scaling", self._pending.shape[1:])  # from one

    def _load_covariance(self, es: Any, state: State) -> None:
        _, dim = self._pending.shape
        for name in _EIGEN:
            setattr(es.sm, name, checks.take(state, name, (dim,) if name == "D" else (dim, dim)))
        es.sm.count_tell = int(checks.take(state, "updates"))
        es.sm.last_update = int(checks.take(state, "updates_at_eigen"))


def default_mean_rate(dim: int, population: int, solutions: int) -> float:
    """Return the last learning rate of the mean: 1/4 up to 24 candidates, 1/2 from 96; less in very many dimensions.

    At rate 1, the mean moves in each generation by about ``sigma * sqrt(dim / solutions)`` whether fitness says
    anything or not. With noise and many dimensions that random walk outruns what is learnt: on a noisy sphere of 2048
    dimensions with 24 candidates the mean ends farther from the optimum than it began, and closer at this rate. It
    grows with the root of the number of candidates, so that the walk stays the same.

    Args:
        dim: length of the search vector.
        population: candidates of a generation.
        solutions: what the mean moves to: the candidates, and their mirror images where those count.

    >>> default_mean_rate(256, 24, 48), default_mean_rate(256, 96, 192), default_mean_rate(8192, 64, 64)
    (0.25, 0.5, 0.25)
    """
    return min(max(0.25, math.sqrt(population / 384)), 0.5, most_mean_rate(dim, solutions))


def most_mean_rate(dim: int, solutions: int) -> float:
    """Return the largest learning rate of the mean at which noise alone moves it by less than three sigma a generation.

    Args:
        dim: length of the search vector.
        solutions: candidates of a generation, and their mirror images where those count.

    >>> most_mean_rate(256, 48), most_mean_rate(8192, 64)
    (1.0, 0.25)
    """
    return min(1.0, math.sqrt(8 * solutions / dim))


def _choose(value: str, option: str, kinds: tuple[str, str], dim: int) -> str:
    """Return which of two kinds an option means: auto is the first in few dimensions, the second in many."""
    if value == "auto":
        return kinds[dim > LARGEST_FULL]
    if value not in kinds:
        raise OptimizerError(f"{option} is {value!r}, expected 'auto', {kinds[0]!r} or {kinds[1]!r}")
    return value


def _quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call pycma without its warnings, which are for people at a prompt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)
