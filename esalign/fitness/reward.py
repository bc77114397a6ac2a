"""The fitness of ESSA: the mean reward of what each candidate generates, and how sure it is of what earns more."""

from dataclasses import asdict, replace

import numpy as np

from esalign.errors import ConfigError, RewardError
from esalign.fitness.completions import Completed, add_errors, complete, mean_of_samples, mix
from esalign.fitness.parts import FitnessParts
from esalign.fitness.reliability import LEAST, ProblemCount, reliability
from esalign.seeds import Use, derive
from esalign.types import Array, Evaluation, Example, State

SAMPLED, CONFIDENCE = 0.25, 4.0
"""Share of the problems that are sampled, and weight of a greedy completion's probability, by default; see
docs/benchmarks/defaults.md for how they were chosen."""


class RewardFitness:
    """Mean reward over a mini-batch of problems that all candidates of a generation share (common random numbers).

    What is right by greedy decoding counts more the likelier it is.

    Args:
        parts: what every fitness is made of.
        prompts: problems per generation; None starts with few, and takes more as candidates come near each other, see
            `esalign.fitness.reliability`.
        samples: completions per problem and candidate; above 1 they need a temperature.
        sampled: with greedy decoding, share of the problems that are completed at temperature 1 all the same, in
            [0, 1]: what raises greedy completions may lower sampled ones, and a greedy fitness does not notice.
        confidence: with greedy decoding, a completion of reward r and probability p counts
            ``r + confidence p (r - least)``, the least reward of the generation being worth nothing; at least 0. It is
            the likeliest one's part of what sampled completions earn, ``sum_y p(y) r(y)``, without luck. Short
            completions are likelier than long ones; where each is as good as impossible, it comes to nothing.

    Raises:
        ConfigError: several samples with greedy decoding, where all would be equal, or an option outside its range.
    """

    def __init__(
        self,
        parts: FitnessParts,
        *,
        prompts: int | None = None,
        samples: int = 1,
        sampled: float = SAMPLED,
        confidence: float = CONFIDENCE,
    ) -> None:
        if samples > 1 and parts.sampling.temperature == 0:
            raise ConfigError(
                f"fitness.samples is {samples} with greedy decoding, where all samples are equal: set "
                "sampling.temperature above 0, or fitness.samples to 1"
            )
        if not 0 <= sampled <= 1:
            raise ConfigError(f"fitness.options.sampled is {sampled}, expected a share of the problems, from 0 to 1")
        if not 0 <= confidence < float("inf"):
            raise ConfigError(f"fitness.options.confidence is {confidence}, expected a weight, at least 0")
        self._backend, self._batches, self._pool = parts.backend, parts.batches, parts.pool
        self._samples, self._seed, self._decoding = samples, parts.seed, parts.sampling
        self._sampled, self._confidence = sampled, confidence
        self._adapts, self._count = prompts is None, ProblemCount(prompts or LEAST)
        self._examples: list[Example] = []
        self._sampling = parts.sampling  # of this generation

    def prepare(self, mean: Array, generation: int) -> None:  # noqa: ARG002  (other fitnesses draw from the mean)
        """Draw this generation's problems and decoding seed."""
        number = min(self._count.count, len(self._batches)) if self._adapts else self._count.count
        chosen = self._batches.next(number)
        self._examples = [example for example in chosen for _ in range(self._samples)]
        self._pool.state = replace(self._pool.state, global_step=generation - 1)
        mixed = mix(self._decoding, len(self._examples), self._sampled)
        self._sampling = replace(
            mixed,
            seed=derive(self._seed, Use.GENERATION, generation),
            logprob=self._confidence > 0 and not mixed.draws(0),
        )

    def evaluate(self, candidates: Array) -> Evaluation:
        """Let all candidates write, and average what their completions count.

        Problems on which all rewards abstain do not count; a candidate with no reward at all ranks last.

        Raises:
            RewardError: the rewards abstained on every completion of every candidate, or could score none.
            ConfigError: probabilities count, and the engine does not give them.
        """
        completed = self._complete(candidates)
        rewards = completed.rewards
        counts = (~np.isnan(rewards)).sum(axis=1)
        if not counts.any():
            raise RewardError(
                f"all rewards abstained on all {rewards.size} completions of a generation, expected a number for some: "
                "check that the reward fits the data"
            )
        fitness = np.nansum(rewards, axis=1) / np.maximum(counts, 1) + self._surety(completed)
        fitness[counts == 0] = fitness[counts > 0].min()
        by_problem = mean_of_samples(rewards.reshape(len(rewards), -1, self._samples))
        if self._adapts:
            self._count.note(by_problem)
        known = reliability(by_problem)
        prompt_tokens = sum(len(self._backend.encode(example.prompt)) for example in self._examples)
        return Evaluation(
            fitness=fitness,
            metrics=add_errors(
                {
                    "reward": float(np.nanmean(rewards)),
                    "reward_std": float(np.nanmean(np.nanstd(rewards[counts > 0], axis=1))),
                    "truncated": completed.truncated,
                    "mean_tokens": completed.generated_tokens / rewards.size,
                    "prompts": len(self._examples) // self._samples,
                    "abstained": float(np.isnan(rewards).mean()),
                    **({} if known is None else {"reliability": known}),
                },
                completed.errors,
                completed.error_examples,
            ),
            generated_tokens=completed.generated_tokens,
            prompt_tokens=prompt_tokens * len(rewards),
            samples=completed.samples(self._examples, candidate=int(np.argmax(fitness))),
        )

    def _complete(self, candidates: Array) -> Completed:
        return complete(self._backend, self._pool, candidates, self._examples, self._sampling).refuse_unscored()

    def _surety(self, completed: Completed) -> Array:
        """Return what the probabilities of greedy completions add to each candidate's fitness, shape (population,)."""
        if not self._sampling.logprob:
            return np.zeros(len(completed.rows))
        if any(one.logprob is None for row in completed.rows for one in row):
            raise ConfigError(
                "the engine does not say how likely its completions are: set fitness.options.confidence to 0"
            )
        greedy = [j for j in range(len(self._examples)) if not self._sampling.draws(j)]
        logprobs = np.array([[row[j].logprob for j in greedy] for row in completed.rows], dtype=np.float64)
        likely = np.where(np.isnan(logprobs), 0.0, np.exp(np.minimum(logprobs, 0.0)))  # NaN: its logits overflow
        worth = (completed.rewards[:, greedy] - np.nanmin(completed.rewards)) * likely
        means = np.nansum(worth, axis=1) / np.maximum((~np.isnan(worth)).sum(axis=1), 1)
        return self._confidence * len(greedy) / len(self._examples) * means

    def state_dict(self) -> State:
        """The place in the training problems, and how many are next."""
        return {"batches": self._batches.state_dict(), "count": asdict(self._count)}

    def load_state_dict(self, state: State) -> None:
        """Continue from that place."""
        self._batches.load_state_dict(state["batches"])
        if self._adapts:
            self._count = ProblemCount(**state["count"])
