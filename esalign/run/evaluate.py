"""Held-out evaluation of one search vector, and its distance from the start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from esalign.fitness.budget import divergence
from esalign.fitness.completions import complete
from esalign.protocols import Backend
from esalign.rewards import RewardPool, TrainerState
from esalign.run.statistics import Estimate, estimate
from esalign.types import Array, Completion, Example, Prompt, Sample, Sampling


@dataclass(frozen=True)
class HeldOut:
    """Problems that are never learnt from.

    Args:
        examples: the problems.
        pool: the rewards that judge them.
        on_completion: called as each completion is finished, for those who wait.
        state: how far the run is, for rewards that ask.
    """

    examples: Sequence[Example]
    pool: RewardPool
    on_completion: Callable[[], None] | None = None
    state: TrainerState = field(default_factory=TrainerState)


@dataclass(frozen=True)
class HeldOutResult:
    """Scores on held-out problems.

    Args:
        scores: of each problem, more is better, shape (problems,), NaN where all rewards abstained.
        generated_tokens: tokens generated for it.
        truncated: share of completions cut by the token limit.
        errors: number of completions whose scoring failed, by reward and kind.
        error_examples: one message of each.
        samples: the completions, for people to read.
        completions: the completions, as the engine gave them.
    """

    scores: Array
    generated_tokens: int
    truncated: float = float("nan")
    errors: Mapping[str, int] = field(default_factory=dict)
    error_examples: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    completions: Sequence[Completion] = ()

    @property
    def estimate(self) -> Estimate:
        """The mean score with its 95 % interval."""
        return estimate(self.scores)


def evaluate(backend: Backend, held_out: HeldOut, vector: Array, sampling: Sampling) -> HeldOutResult:
    """Complete held-out problems with one search vector, shape (dim,).

    Raises:
        RewardError: no completion could be scored.
    """
    held_out.pool.state = held_out.state
    vectors, on_completion = np.asarray(vector)[None], held_out.on_completion
    completed = complete(
        backend, held_out.pool, vectors, held_out.examples, sampling, on_completion=on_completion
    ).refuse_unscored()
    return HeldOutResult(
        scores=completed.rewards[0],
        generated_tokens=completed.generated_tokens,
        truncated=completed.truncated,
        errors=completed.errors,
        error_examples=completed.error_examples,
        samples=completed.samples(held_out.examples, most=None),
        completions=completed.rows[0],
    )


def log_probs(backend: Backend, vector: Array, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Array:
    """Return the log-probability, nats, at temperature 1, of each prompt's completion for a search vector."""
    written = [j for j, completion in enumerate(completions) if completion.token_ids]
    values = np.zeros(len(completions))
    if written:
        encoded = {id(prompt): backend.encode(prompt) for prompt in {id(one): one for one in prompts}.values()}
        sequences = [(encoded[id(prompts[j])], completions[j].token_ids) for j in written]
        rows = backend.score(np.asarray(vector)[None], sequences)
        values[written] = [row.sum(dtype=np.float64) for row in rows[0]]
    return values


def kl_to_start(backend: Backend, vector: Array, examples: Sequence[Example], sampling: Sampling) -> float:
    """Estimate KL(vector || start) in nats per generated token, from completions that the vector samples.

    The estimator is k3, ``r - 1 - log r`` with ``r = p_start / p_vector``: unbiased, of low variance, never negative
    (John Schulman, "Approximating KL divergence", 2020). It is unbiased at temperature 1 only, so pass that.
    """
    vector = np.asarray(vector)
    if not vector.any():
        return 0.0
    prompts = [example.prompt for example in examples]
    rows = backend.generate(vector[None], prompts, sampling)
    sequences = [(backend.encode(p), c.token_ids) for p, c in zip(prompts, rows[0], strict=True) if c.token_ids]
    if not sequences:
        return 0.0
    of_vector, of_start = backend.score(np.stack([vector, np.zeros_like(vector)]), sequences)
    return float(divergence(np.concatenate(of_start).astype(np.float64)[None] - np.concatenate(of_vector))[0])
