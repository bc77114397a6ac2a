"""The fitness of ESSA: the mean reward of what each candidate generates, on problems that all candidates share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from esalign.data import MiniBatches
from esalign.errors import RewardError
from esalign.protocols import Backend
from esalign.rewards.pool import RewardPool
from esalign.types import Array, Completion, Evaluation, Example, Sample, Sampling, State

SHOWN_SAMPLES = 3


@dataclass(frozen=True)
class Answers:
    """What candidates answered, and what it was worth.

    Args:
        rows: ``rows[i][j]``, candidate i's answer to problem j.
        rewards: shape (population, problems), NaN where all rewards abstained.
        errors: number of answers whose scoring failed or timed out, by reward and kind.
        error_examples: one message of each.
    """

    rows: Sequence[Sequence[Completion]]
    rewards: Array
    errors: Mapping[str, int]
    error_examples: Mapping[str, str]

    @property
    def generated_tokens(self) -> int:
        """Number of generated tokens."""
        return sum(len(completion.token_ids) for row in self.rows for completion in row)

    @property
    def truncated(self) -> float:
        """Share of answers cut by the token limit."""
        reasons = [completion.finish_reason for row in self.rows for completion in row]
        return reasons.count("length") / len(reasons)


def answer(
    backend: Backend, pool: RewardPool, candidates: Array, examples: Sequence[Example], sampling: Sampling
) -> Answers:
    """Let candidates, shape (population, dim), answer examples; scoring goes on beside generation."""

    def on_completion(i: int, j: int, completion: Completion) -> None:
        pool.submit((i, j), examples[j], completion.text)

    rows = backend.generate(candidates, [example.prompt for example in examples], sampling, on_completion)
    scores = pool.collect()
    rewards = np.full((len(rows), len(examples)), np.nan)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            reward = scores.rewards[i, j]
            if reward is not None:
                rewards[i, j] = reward
    return Answers(rows, rewards, scores.errors, scores.error_examples)


def derive_seed(*parts: int) -> int:
    """Return a seed, 32 bits, that depends on all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class RewardFitness:
    """Mean reward over a mini-batch of problems that all candidates of a generation share (common random numbers).

    Args:
        backend: the engine.
        batches: where each generation's problems come from.
        pool: the rewards.
        sampling: how to decode; its seed is replaced each generation, the same for all candidates.
        prompts: problems per generation.
        samples: answers per problem and candidate.
        seed: what the decoding seeds derive from.
    """

    def __init__(
        self,
        backend: Backend,
        batches: MiniBatches,
        pool: RewardPool,
        sampling: Sampling,
        *,
        prompts: int,
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        self._backend, self._batches, self._pool = backend, batches, pool
        self._prompts, self._samples, self._seed = prompts, samples, seed
        self._sampling = sampling
        self._examples: list[Example] = []

    def prepare(self, mean: Array, generation: int) -> None:  # noqa: ARG002  (other fitnesses draw from the mean)
        """Draw this generation's problems and decoding seed."""
        chosen = self._batches.next(self._prompts)
        self._examples = [example for example in chosen for _ in range(self._samples)]
        self._sampling = replace(self._sampling, seed=derive_seed(self._seed, generation))

    def evaluate(self, candidates: Array) -> Evaluation:
        """Let all candidates answer, and average their rewards.

        Problems on which all rewards abstain do not count; a candidate with no reward at all ranks last.

        Raises:
            RewardError: the rewards abstained on every answer of every candidate.
        """
        answers = answer(self._backend, self._pool, candidates, self._examples, self._sampling)
        rewards = answers.rewards
        counts = (~np.isnan(rewards)).sum(axis=1)
        if not counts.any():
            raise RewardError(
                f"all rewards abstained on all {rewards.size} answers of a generation, expected a number for some: "
                "check that the reward fits the data"
            )
        fitness = np.nansum(rewards, axis=1) / np.maximum(counts, 1)
        fitness[counts == 0] = fitness[counts > 0].min()
        prompt_tokens = sum(len(self._backend.encode(example.prompt)) for example in self._examples)
        return Evaluation(
            fitness=fitness,
            metrics={
                "reward_std": float(np.nanmean(np.nanstd(rewards[counts > 0], axis=1))),
                "truncated": answers.truncated,
                "mean_tokens": answers.generated_tokens / rewards.size,
                "abstained": float(np.isnan(rewards).mean()),
                **{f"errors/{name}": float(count) for name, count in answers.errors.items()},
            },
            generated_tokens=answers.generated_tokens,
            prompt_tokens=prompt_tokens * len(rewards),
            samples=make_samples(self._examples, answers, candidate=int(np.argmax(fitness))),
        )

    def state_dict(self) -> State:
        """The place in the training problems."""
        return {"batches": self._batches.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from that place."""
        self._batches.load_state_dict(state["batches"])


def make_samples(examples: Sequence[Example], answers: Answers, *, candidate: int = 0) -> tuple[Sample, ...]:
    """Return a candidate's first answers, for people to read."""
    shown = []
    for j, example in enumerate(examples[:SHOWN_SAMPLES]):
        reward = answers.rewards[candidate, j]
        text = answers.rows[candidate][j].text
        shown.append(Sample(example.prompt, text, None if np.isnan(reward) else float(reward), example.columns))
    return tuple(shown)
