"""OpenAI's evolution strategy: a mirrored estimate of the gradient, followed by Adam.

Salimans, Ho, Chen, Sidor, Sutskever (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement
Learning", arXiv 1703.03864, Algorithm 1 and section 2; Kingma and Ba (2015), "Adam", arXiv 1412.6980, Algorithm 1.
"""

from typing import Any

import numpy as np

from esalign.errors import OptimizerError
from esalign.optimizers import checks
from esalign.optimizers.ranks import centred_ranks
from esalign.seeds import Use, generator
from esalign.types import Array, State


class OpenAiEs:
    """Estimate the gradient of the smoothed fitness from mirrored pairs, and follow it with Adam.

    Paper symbols: theta the mean, sigma the standard deviation of the perturbations epsilon, alpha the learning rate,
    n the population, m and v Adam's moments, t its step.

    Args:
        dim: length of the search vector.
        sigma: standard deviation of the perturbations, the same for the whole run.
        population: candidates of a generation, even: pairs theta + sigma epsilon, theta - sigma epsilon.
        seed: of the random stream.
        learning_rate: alpha, the length of a step in each coordinate, in units of the search vector; sigma / 10 unless
            given. (The paper's code has sigma / 2 for networks of a million weights and thousands of candidates. With
            tens of candidates a noisy sphere wants sigma / 10: at sigma / 2 the mean wanders away.)
        weight_decay: pull towards zero, i.e. towards the start, at least 0: theta shrinks by alpha times this fraction
            in each generation, decoupled from Adam (Loshchilov and Hutter 2019, arXiv 1711.05101). The paper's code
            adds it to the gradient, where its strength depends on how noisy fitness is.
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1).
    """

    def __init__(
        self,
        *,
        dim: int,
        sigma: float,
        population: int,
        seed: int,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
    ) -> None:
        checks.check_settings(dim=dim, sigma=sigma, population=population, seed=seed, least_population=2)
        if population % 2:
            raise OptimizerError(
                f"population is {population}, expected an even number: openai-es samples mirrored pairs"
            )
        learning_rate = sigma / 10 if learning_rate is None else learning_rate
        checks.check_number("learning_rate", learning_rate, above=0.0)
        checks.check_number("weight_decay", weight_decay, least=0.0)
        checks.check_number("beta1", beta1, least=0.0, below=1.0)
        checks.check_number("beta2", beta2, least=0.0, below=1.0)
        self._sigma, self._alpha, self._weight_decay = float(sigma), float(learning_rate), float(weight_decay)
        self._beta1, self._beta2 = float(beta1), float(beta2)
        settings: State = {
            "optimizer": "openai-es",
            "dim": int(dim),
            "population": int(population),
            "sigma": self._sigma,
            "learning_rate": self._alpha,
            "weight_decay": self._weight_decay,
            "beta1": self._beta1,
            "beta2": self._beta2,
        }
        self._pending = checks.Pending(settings, generator(seed, Use.OPTIMIZER))
        self._theta, self._m, self._v = np.zeros(dim), np.zeros(dim), np.zeros(dim)
        self._t = 0

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64: the first half's mirror image is the second."""
        return self._pending.ask(self._draw)

    def _draw(self) -> Array:
        population, dim = self._pending.shape
        epsilon = self._pending.rng.standard_normal((population // 2, dim))
        candidates: Array = self._theta + self._sigma * np.concatenate([epsilon, -epsilon])  # section 2.1, antithetic
        return candidates

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Take one step of Adam along the estimated gradient."""
        asked, fitness = self._pending.tell(candidates, fitness)
        epsilon = (asked - self._theta) / self._sigma
        gradient = centred_ranks(fitness) @ epsilon / (len(asked) * self._sigma)  # Algorithm 1, line 8
        self._step(gradient)

    def _step(self, gradient: Array) -> None:
        self._t += 1
        self._m = self._beta1 * self._m + (1 - self._beta1) * gradient
        self._v = self._beta2 * self._v + (1 - self._beta2) * gradient**2
        m_hat = self._m / (1 - self._beta1**self._t)
        v_hat = self._v / (1 - self._beta2**self._t)
        decay = self._weight_decay * self._theta
        self._theta = self._theta + self._alpha * (m_hat / (np.sqrt(v_hat) + 1e-8) - decay)

    @property
    def mean(self) -> Array:
        """Theta, shape (dim,)."""
        return self._theta.copy()

    @property
    def sigma(self) -> float:
        """The standard deviation of the perturbations; it never changes."""
        return self._sigma

    def __reduce__(self) -> tuple[Any, ...]:
        return checks.reduce(self, self._pending.settings, seed=0)

    def state_dict(self) -> State:
        """Return everything that the future depends on."""
        return {
            **self._pending.state_dict(),
            "theta": self._theta.copy(),
            "m": self._m.copy(),
            "v": self._v.copy(),
            "t": self._t,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a state."""
        pending = self._pending.restored(state)
        theta, m, v = (checks.take(state, name, pending.shape[1:]) for name in ("theta", "m", "v"))
        t = int(checks.take(state, "t"))
        self._pending, self._theta, self._m, self._v, self._t = pending, theta, m, v, t
