"""How far a search may trust a surrogate: steps by measured divergence, the way back by true reward (ours).

As in trust-region methods (Conn, Gould and Toint 2000, chapter 6; Schulman et al. 2015, arXiv 1502.05477): within a
region the surrogate chooses, and what it chose is kept if the true objective agrees.
"""

import math

import numpy as np

from esalign.types import Array, State, Steering

LEAST_FACTOR, MOST_FACTOR = 0.1, 1.25
"""Of the step's length, from one measurement to the next."""

LEAST_SCALE = 1e-6


class TrustRegion:
    """The mean to go back to, and the length of steps.

    Steps are so long that half of the candidates are within half of the limit, but no longer than the optimiser's first
    ones. Fitness has no say in it: on few completions a surrogate may well prefer whatever is far away.

    Args:
        limit: bound on a candidate's divergence from the mean that wrote the completions, nats per token.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._scale, self._radius = 1.0, 1.0
        self.trusted: Array | None = None
        self.retreats = 0

    def steering(self, mean: Array) -> Steering:
        """Return how a search goes on from a mean."""
        return Steering(mean=mean, scale=self._scale)

    def note(self, kl: Array) -> None:
        """Adapt the length of steps to the divergences of candidates from their mean, shape (population,)."""
        factor = math.sqrt(self._radius * self._limit / 2 / max(float(np.median(kl)), 1e-12))  # KL grows as its square
        self._scale = min(1.0, max(LEAST_SCALE, self._scale * min(max(factor, LEAST_FACTOR), MOST_FACTOR)))

    @property
    def exhausted(self) -> bool:
        """Whether steps cannot get shorter."""
        return self._scale == LEAST_SCALE

    def retreat(self) -> None:
        """Halve the region, as the search goes back."""
        self._radius /= 2
        self.retreats += 1

    def retreats_from(self, mean: Array, gains: Array) -> bool:
        """Tell whether a mean earned less than the trusted one, by more than a standard error.

        Then it retreats. A mean that earned no less is the trusted one from here on, and the region grows again. In
        between nothing changes, so that a decline in small steps is found as well; nor where all earned the same.

        Args:
            mean: shape (dim,).
            gains: its mean reward of each problem less that of the trusted mean, shape (problems,), NaN where unknown.
        """
        known = gains[~np.isnan(gains)]
        if len(known) < 2 or not known.any():
            return False
        gain, error = float(known.mean()), float(known.std(ddof=1)) / math.sqrt(len(known))
        if gain >= 0:
            self.trusted, self._radius = mean.copy(), min(1.0, self._radius * math.sqrt(2))
        if gain >= -error:
            return False
        self.retreat()
        return True

    def state_dict(self) -> State:
        """All that it knows."""
        return {"scale": self._scale, "radius": self._radius, "trusted": self.trusted, "retreats": self.retreats}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state."""
        self._scale, self._radius = state["scale"], state["radius"]
        self.trusted, self.retreats = state["trusted"], state["retreats"]
