"""The learner of `esalign run`: an optimiser's mean, made better by a fitness."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from esalign.errors import ConfigError
from esalign.loop import search
from esalign.optimizers.steered import Steered
from esalign.protocols import Backend, Fitness, HeldOutFitness, MeasuredBackend, Optimizer, Space
from esalign.run.evaluate import HeldOut, HeldOutResult, evaluate, kl_to_start, log_probs
from esalign.run.learner import REWARD, Step
from esalign.types import Array, Completion, Prompt, Sampling, State


class Evolution:
    """A search distribution; what is judged is its mean.

    Args:
        space: what a search vector means.
        backend: generates and scores.
        optimizer: proposes candidates.
        fitness: judges them. One that is no mean reward says itself how held-out problems measure it.
        selection: what the search maximises, where that is more than the fitness: a `WithinBudget` around it.
    """

    def __init__(
        self,
        *,
        space: Space,
        backend: Backend,
        optimizer: Optimizer,
        fitness: Fitness,
        selection: Fitness | None = None,
    ) -> None:
        self.space, self.backend = space, backend
        self.optimizer, self.fitness, self.selection = Steered(optimizer), fitness, selection or fitness
        self._restored: Array | None = None

    @property
    def vector(self) -> Array:
        """The search vector that is judged, shape (dim,): the mean, or what was restored."""
        return self.optimizer.mean if self._restored is None else self._restored.copy()

    @property
    def measures(self) -> tuple[str, ...]:
        """The mean reward, behind the fitness's own measure where it has one."""
        return (self.fitness.measure, REWARD) if isinstance(self.fitness, HeldOutFitness) else (REWARD,)

    @property
    def fingerprint(self) -> str:
        """The space's."""
        return self.space.fingerprint

    def advance(self, number: int) -> Step:
        """Ask, evaluate, tell."""
        [generation] = search(self.optimizer, self.selection, generations=number, done=number - 1)
        evaluation = generation.evaluation
        metrics: dict[str, Any] = {
            "fitness": _spread(evaluation.fitness),
            "sigma": self.optimizer.sigma,
            "mean_norm": float(np.linalg.norm(self.optimizer.mean)),
            **evaluation.metrics,
        }
        return Step(
            metrics=metrics,
            samples=evaluation.samples,
            generated_tokens=evaluation.generated_tokens,
            prompt_tokens=evaluation.prompt_tokens,
            scored_tokens=evaluation.scored_tokens,
            machine=self.backend.measure() if isinstance(self.backend, MeasuredBackend) else {},
            flat=bool(evaluation.usable and np.ptp(evaluation.fitness) == 0),
        )

    def judge(self, measure: str, held_out: HeldOut, sampling: Sampling) -> HeldOutResult:
        """Score the vector by reward, or as the fitness does.

        Raises:
            ConfigError: no such measure.
        """
        if measure == REWARD:
            return evaluate(self.backend, held_out, self.vector, sampling)
        if isinstance(self.fitness, HeldOutFitness) and measure == self.fitness.measure:
            scores, tokens = self.fitness.judge(self.vector, held_out.examples, sampling.seed)
            return HeldOutResult(scores, generated_tokens=tokens)
        raise ConfigError(f"nothing is measured by {measure!r}, expected one of {', '.join(self.measures)}")

    def kl_to_start(self, held_out: HeldOut, sampling: Sampling) -> float:
        """Estimate it from completions of the vector at temperature 1, on the whole vocabulary."""
        own = replace(sampling, temperature=1.0, top_p=1.0, top_k=0)  # the estimator needs the model's own distribution
        return kl_to_start(self.backend, self.vector, held_out.examples, own)

    def snapshot(self) -> State:
        """Return the vector."""
        return {"vector": self.vector}

    def restore(self, snapshot: State) -> None:
        """Let that vector be judged."""
        self._restored = np.array(snapshot["vector"])

    def between(self, start: State, end: State, share: float) -> State:
        """Return the vector at a share of the straight way."""
        first, last = (np.asarray(snapshot["vector"], dtype=np.float64) for snapshot in (start, end))
        return {"vector": first + share * (last - first)}

    def log_probs(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Array:
        """Return each completion's for the vector."""
        return log_probs(self.backend, self.vector, prompts, completions)

    def state_dict(self) -> State:
        """The optimiser's and the fitness's."""
        return {"optimizer": self.optimizer.state_dict(), "fitness": self.fitness.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from there."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.fitness.load_state_dict(state["fitness"])


def _spread(values: Array) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "max": float(values.max()),
        "min": float(values.min()),
        "std": float(values.std()),
    }
