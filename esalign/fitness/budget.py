"""A limit on how far candidates may be from the start, for every fitness: what no reward sees stays as it was."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from esalign.protocols import Backend, Fitness
from esalign.seeds import Use, derive, generator
from esalign.types import Array, Evaluation, Example, Sampling, State, Steering

PROMPTS = 24
MAX_LOG_RATIO = 20.0  # exp of it is finite in float32

FARTHEST = 1e9
"""Nats per token beyond the limit, at most: fitness is finite."""


class WithinBudget:
    """A fitness in which candidates that are too far from the start rank behind all others, the farther the lower.

    Each generation the start samples a completion of some training problems, at temperature 1, and candidates score
    them: so KL(start || candidate) says how likely what the start would have written still is. It costs a generation as
    much as one more candidate, and reading these completions with all of them.

    Args:
        fitness: what is maximised.
        backend: generates and scores.
        examples: the training problems.
        sampling: of the run; its token limit and its stops are kept.
        budget: nats per token.
        prompts: problems per generation.
        seed: of the run.
    """

    def __init__(
        self,
        fitness: Fitness,
        backend: Backend,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        budget: float,
        prompts: int = PROMPTS,
        seed: int = 0,
    ) -> None:
        self._fitness, self._backend, self._examples = fitness, backend, examples
        self._sampling = replace(sampling, temperature=1.0, top_p=1.0, top_k=0)
        self._budget, self._count, self._seed = budget, min(prompts, len(examples)), seed
        self._sequences: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._of_start: Array = np.zeros(0)

    def prepare(self, mean: Array, generation: int) -> Steering | None:
        """Let the start write, too."""
        steering = self._fitness.prepare(mean, generation)
        chosen = generator(self._seed, Use.KL_BUDGET, generation).choice(
            len(self._examples), self._count, replace=False
        )
        prompts = [self._examples[index].prompt for index in chosen]
        start = np.zeros((1, len(mean)))
        sampling = replace(self._sampling, seed=derive(self._seed, Use.KL_BUDGET, generation))
        [row] = self._backend.generate(start, prompts, sampling)
        self._sequences = [
            (self._backend.encode(p), c.token_ids) for p, c in zip(prompts, row, strict=True) if c.token_ids
        ]
        self._of_start = self._log_probabilities(start)[0]
        return steering

    def evaluate(self, candidates: Array) -> Evaluation:
        """Evaluate candidates, and put those that are too far behind the others."""
        found = self._fitness.evaluate(candidates)
        log_ratio = np.clip(self._log_probabilities(candidates) - self._of_start, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        kl = divergence(log_ratio)
        read = sum(len(prompt) + len(completion) for prompt, completion in self._sequences)
        return replace(
            found,
            fitness=bounded(found.fitness, kl, self._budget),
            metrics={
                **found.metrics,
                "kl_to_start": float(kl.mean()),
                "beyond_kl_budget": float((kl > self._budget).mean()),
            },
            generated_tokens=found.generated_tokens + sum(len(completion) for _, completion in self._sequences),
            prompt_tokens=found.prompt_tokens + sum(len(prompt) for prompt, _ in self._sequences),
            scored_tokens=found.scored_tokens + (1 + len(candidates)) * read,
        )

    def _log_probabilities(self, candidates: Array) -> Array:
        """Return log-probabilities of all completions' tokens, one after another, shape (population, tokens)."""
        rows = self._backend.score(candidates, self._sequences)
        return np.stack([np.concatenate([*row, np.zeros(0)]) for row in rows]).astype(np.float64)

    def state_dict(self) -> State:
        """The fitness's own; the start's completions follow from the seed."""
        return self._fitness.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Continue from there."""
        self._fitness.load_state_dict(state)


def divergence(log_ratio: Array) -> Array:
    """Estimate KL(p || candidate), nats per token, shape (population,), on tokens that p sampled.

    The k3 estimator (see `esalign.run.evaluate.kl_to_start`): ``r - 1 - log r``, never negative; infinite where it
    overflows, or the candidate's logits do.

    Args:
        log_ratio: log r, the candidate's log-probability less that of p, shape (population, tokens).
    """
    if not log_ratio.shape[1]:
        return np.zeros(len(log_ratio))
    estimate = (np.expm1(log_ratio) - log_ratio).mean(axis=1)
    return np.where(np.isnan(estimate), np.inf, estimate)


def bounded(objective: Array, kl: Array, limit: float) -> Array:
    """Return the objective, candidates above the limit behind all others, the larger their divergence the lower.

    >>> bounded(np.array([0.3, 0.1, 0.5]), np.array([0.0, 0.0, 0.2]), 0.05)
    array([ 0.3 ,  0.1 , -0.05])
    """
    inside = kl <= limit
    floor = objective[inside].min() if inside.any() else 0.0
    fitness: Array = np.where(inside, objective, floor - np.minimum(kl - limit, FARTHEST))
    return fitness
