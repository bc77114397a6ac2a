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
from esalign.seeds import Use, generator
from esalign.types import Array, State

Covariance = Literal["auto", "full", "diagonal"]

LARGEST_FULL = 200
"""Dimensions up to which ``auto`` is a full covariance. Its learning rate falls with dim^2, a diagonal one's with dim:
with 24 candidates and 160 generations, the full one was ahead at 32 dimensions, level at 128 and behind at 256."""

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
        mean_rate: learning rate of the mean, in (0, 1]; see `default_mean_rate` for why it is not 1.
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
        mean_rate = default_mean_rate(dim, population) if mean_rate is None else mean_rate
        checks.check_number("mean_rate", mean_rate, above=0.0, most=1.0)
        if covariance not in ("auto", "full", "diagonal"):
            raise OptimizerError(f"covariance is {covariance!r}, expected 'auto', 'full' or 'diagonal'")
        self._diagonal = covariance == "diagonal" or (covariance == "auto" and dim > LARGEST_FULL)
        settings: State = {
            "optimizer": "cma-es",
            "dim": int(dim),
            "population": int(population),
            "covariance": "diagonal" if self._diagonal else "full",
            "mean_rate": float(mean_rate),
            "step_damping": float(step_damping),
        }
        self._pending = checks.Pending(settings, generator(seed, Use.OPTIMIZER))
        self._es = self._make(float(sigma), self._pending.rng)

    def _make(self, sigma: float, rng: np.random.Generator) -> Any:
        import cma

        settings = self._pending.settings
        options = {
            "popsize": settings["population"],
            "CMA_diagonal": self._diagonal,
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "CSA_dampfac": settings["step_damping"],
            "CMA_cmean": settings["mean_rate"],
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
        return self._pending.ask(lambda: np.array(_quietly(self._es.ask), dtype=np.float64))

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Update mean, covariance and step size from the ranking of the candidates.

        A generation of equally fit candidates has no ranking: it changes nothing.
        """
        asked, fitness = self._pending.tell(candidates, fitness)
        if np.ptp(fitness) == 0:
            return
        # check_points=False: the candidates are the asked ones, so pycma need not look them up and clip unknown ones
        _quietly(self._es.tell, list(asked), list(-fitness), check_points=False)

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


def default_mean_rate(dim: int, population: int) -> float:
    """Return the learning rate of the mean: 1/4 up to 24 candidates, 1/2 from 48 on; less in very many dimensions.

    At rate 1, the mean moves in each generation by about ``sigma * sqrt(dim / mu_eff)`` whether fitness says anything
    or not. With noise and many dimensions that random walk outruns what is learnt: on a noisy sphere of 2048 dimensions
    with 24 candidates the mean ends farther from the optimum than it began, and closer at this rate.

    >>> default_mean_rate(256, 24), default_mean_rate(256, 96), default_mean_rate(8192, 64)
    (0.25, 0.5, 0.25)
    """
    return min(max(0.25, population / 96), 0.5, math.sqrt(8 * population / dim))


def _quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call pycma without its warnings, which are for people at a prompt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)
