"""An optimiser that can be sent elsewhere and made to take shorter steps, whatever its algorithm."""

import copy

import numpy as np

from esalign.optimizers import checks
from esalign.protocols import Optimizer
from esalign.types import Array, State, Steering

MOST_TAKEN_OUT = 1e6
"""Factor by which the other's step size may have changed and is still taken out: beyond, rounding would eat it."""


class Steered:
    """An optimiser around another: its search vectors are ``origin + scale * y``, with y those of the other.

    The other knows nothing of it. Until it is steered the two are the same, and so are their states. From then on the
    step size is the one it is given: what the other makes of its own is taken out by the scale (as far as the other
    tells: nevergrad does not). It goes where it is sent if the other's candidates lie around its mean, as those of
    ``cma-es``, ``openai-es`` and nevergrad's CMA-ES do; those of ``random-search`` lie around its start, and a
    population (``nevergrad:TwoPointsDE``) around itself. A weight decay of ``openai-es`` pulls towards the origin.

    Args:
        optimizer: the other, new; from here on it is asked and told through this one alone.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._inner, self._first_sigma = optimizer, optimizer.sigma
        self._origin, self._scale = np.zeros_like(optimizer.mean), 1.0
        self._asked: Array | None = None  # of the other

    def steer(self, steering: Steering) -> None:
        """Go on from a mean, with steps of a length. What was asked and not told has to be asked again."""
        grown = min(max(self._inner.sigma / self._first_sigma, 1 / MOST_TAKEN_OUT), MOST_TAKEN_OUT)
        scale = steering.scale / grown
        if scale != self._scale or not np.array_equal(steering.mean, self.mean):
            self._origin, self._scale = steering.mean - scale * self._inner.mean, scale
            self._asked = None

    @property
    def _steered(self) -> bool:
        return self._scale != 1 or bool(self._origin.any())

    def _outside(self, inner: Array) -> Array:
        return self._origin + self._scale * inner

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64."""
        self._asked = self._inner.ask()
        return self._outside(self._asked)

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Learn the fitness of the candidates that were asked."""
        told = candidates
        if self._steered and self._asked is not None:
            _, fitness = checks.check_told(self._outside(self._asked), candidates, fitness)
            told = self._asked
        self._inner.tell(told, fitness)
        self._asked = None

    def __copy__(self) -> "Steered":
        return copy.deepcopy(self)  # as copies of the others, it shares nothing

    @property
    def mean(self) -> Array:
        """The recommendation, shape (dim,)."""
        return self._outside(self._inner.mean)

    @property
    def sigma(self) -> float:
        """The present step size."""
        return self._scale * self._inner.sigma

    def state_dict(self) -> State:
        """The other's, and where this one was steered to, if it was."""
        state = self._inner.state_dict()
        if not self._steered:
            return state
        asked = None if self._asked is None else self._asked.copy()
        return {**state, "steered": {"origin": self._origin.copy(), "scale": self._scale, "asked": asked}}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state, the other's own too."""
        steered = state.get("steered", {"origin": np.zeros_like(self._origin), "scale": 1.0, "asked": None})
        origin, scale = checks.take(steered, "origin", self._origin.shape), float(checks.take(steered, "scale"))
        asked = checks.take(steered, "asked")
        if asked is not None:
            asked = checks.take(steered, "asked", (len(asked), len(origin)))
        self._inner.load_state_dict({key: value for key, value in state.items() if key != "steered"})
        self._origin, self._scale, self._asked = origin, scale, asked
