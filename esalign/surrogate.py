"""Surrogate ESSA (ours): candidates are judged by how they would have weighted answers that the mean gave.

Plain ESSA generates answers with every candidate and takes one number from each. Here the mean alone answers, sampled
several times per problem; rewards become advantages within each problem, as in GRPO (Shao et al. 2024,
arXiv 2402.03300); and every candidate scores the *same* answers teacher-forced. Its fitness is the clipped,
importance-weighted objective of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7), less a penalty on its divergence
from the mean that answered. It takes forward passes alone, and one set of answers serves several generations.
"""

from dataclasses import replace

import numpy as np

from esalign.data import MiniBatches
from esalign.errors import ConfigError, RewardError
from esalign.fitness import answer, derive_seed, make_samples
from esalign.protocols import Backend
from esalign.rewards.pool import RewardPool
from esalign.types import Array, Evaluation, Sample, Sampling, State

MAX_TRIES = 3
MAX_LOG_RATIO = 20.0  # exp of it is finite in float32; clipped objectives are flat long before


class SurrogateFitness:
    """PPO's clipped objective on answers of the mean, which all candidates score.

    Args:
        backend: the engine.
        batches: where the problems come from.
        pool: the rewards.
        sampling: how to decode; temperature 0 is raised to 1, as equal samples have no advantages.
        prompts: problems per set of answers.
        samples: answers per problem, at least 2.
        seed: what the decoding seeds derive from.
        refresh: generations that one set of answers serves.
        clip: the ratio's distance from 1 at which a token's objective is flat.
        kl_weight: weight of the divergence from the mean that answered (k3 estimator, nats per token).
    """

    def __init__(
        self,
        backend: Backend,
        batches: MiniBatches,
        pool: RewardPool,
        sampling: Sampling,
        *,
        prompts: int,
        samples: int = 8,
        seed: int = 0,
        refresh: int = 4,
        clip: float = 0.2,
        kl_weight: float = 0.0,
    ) -> None:
        if samples < 2:
            raise ConfigError(f"fitness.samples is {samples}, expected at least 2 for fitness 'surrogate', say 8")
        for name, value, least in (("refresh", refresh, 1), ("clip", clip, 1e-9), ("kl_weight", kl_weight, 0)):
            if not value >= least:
                raise ConfigError(f"fitness.options.{name} is {value!r}, expected at least {least}")
        self._backend, self._batches, self._pool = backend, batches, pool
        self._sampling = replace(sampling, temperature=sampling.temperature or 1.0)
        self._prompts, self._samples, self._seed = prompts, samples, seed
        self._refresh, self._clip, self._kl_weight = refresh, clip, kl_weight
        self._age = refresh
        self._sequences: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._advantages = np.zeros(0)
        self._old: Array = np.zeros(0)
        self._reward = float("nan")
        self._fresh: dict[str, int] = {}
        self._shown: tuple[Sample, ...] = ()

    def prepare(self, mean: Array, generation: int) -> None:
        """Let the mean answer anew when its last answers have served their generations."""
        self._fresh = {"generated_tokens": 0, "prompt_tokens": 0, "scored_tokens": 0}
        self._shown = ()
        self._age += 1
        if self._age <= self._refresh:
            return
        self._age = 1
        for _ in range(MAX_TRIES):
            self._roll_out(mean, generation)
            if self._sequences:
                return
        raise RewardError(
            f"{MAX_TRIES} sets of {self._prompts} problems x {self._samples} answers gave no problem on which rewards "
            "differ, so nothing can be learned: is the task far too easy or too hard, or the reward always the same?"
        )

    def _roll_out(self, mean: Array, generation: int) -> None:
        """Sample answers, turn rewards into advantages, and note the mean's own log-probabilities."""
        chosen = self._batches.next(self._prompts)
        examples = [example for example in chosen for _ in range(self._samples)]
        round_seed = derive_seed(self._seed, generation, self._fresh["generated_tokens"])
        answers = answer(self._backend, self._pool, mean[None], examples, replace(self._sampling, seed=round_seed))
        rewards = answers.rewards[0].reshape(self._prompts, self._samples)
        advantages = group_advantages(rewards).reshape(-1)
        kept = [j for j in np.flatnonzero(advantages) if answers.rows[0][j].token_ids]
        prompts = [self._backend.encode(example.prompt) for example in chosen]
        self._sequences = [(prompts[j // self._samples], answers.rows[0][j].token_ids) for j in kept]
        self._advantages = advantages[kept]
        self._reward = float(np.nanmean(rewards))
        self._shown = make_samples(examples, answers)
        self._fresh["generated_tokens"] += answers.generated_tokens
        self._fresh["prompt_tokens"] += self._samples * sum(len(prompt) for prompt in prompts)
        if self._sequences:
            self._old = self._log_probabilities(mean[None])[0]
            self._fresh["scored_tokens"] += self._scored(1)

    def evaluate(self, candidates: Array) -> Evaluation:
        """Score the kept answers with every candidate."""
        new = self._log_probabilities(candidates)
        log_ratio = np.clip(new - self._old, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        advantages = np.repeat(self._advantages, [len(answer_ids) for _, answer_ids in self._sequences])
        ratio = np.exp(log_ratio)
        objective = np.minimum(ratio * advantages, np.clip(ratio, 1 - self._clip, 1 + self._clip) * advantages)
        kl = (np.expm1(-log_ratio) + log_ratio).mean(axis=1)
        return Evaluation(
            fitness=objective.mean(axis=1) - self._kl_weight * kl,
            metrics={
                "reward": self._reward,
                "kl_to_rollouts": float(kl.mean()),
                "clipped": float((np.abs(ratio - 1) > self._clip).mean()),
                "rollouts": float(len(self._sequences)),
            },
            generated_tokens=self._fresh["generated_tokens"],
            prompt_tokens=self._fresh["prompt_tokens"],
            scored_tokens=self._fresh["scored_tokens"] + self._scored(len(candidates)),
            samples=self._shown,
        )

    def _log_probabilities(self, candidates: Array) -> Array:
        """Return log-probabilities of all answers' tokens, one after another, shape (population, tokens)."""
        rows = self._backend.score(candidates, self._sequences)
        return np.stack([np.concatenate(row) for row in rows]).astype(np.float64)

    def _scored(self, population: int) -> int:
        return population * sum(len(prompt) + len(answer_ids) for prompt, answer_ids in self._sequences)

    def state_dict(self) -> State:
        """The place in the problems, and the answers in use."""
        return {
            "batches": self._batches.state_dict(),
            "age": self._age,
            "prompts": [list(prompt) for prompt, _ in self._sequences],
            "answers": [list(answer_ids) for _, answer_ids in self._sequences],
            "advantages": self._advantages,
            "old": self._old,
            "reward": self._reward,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue with those answers."""
        self._batches.load_state_dict(state["batches"])
        self._age = state["age"]
        pairs = zip(state["prompts"], state["answers"], strict=True)
        self._sequences = [(tuple(prompt), tuple(answer_ids)) for prompt, answer_ids in pairs]
        self._advantages, self._old, self._reward = state["advantages"], state["old"], state["reward"]


def group_advantages(rewards: Array) -> Array:
    """Return rewards of shape (prompts, samples), each row less its mean and over its deviation.

    Rows of equal rewards, from which nothing can be learned, and answers without a reward (NaN) become 0.

    >>> group_advantages(np.array([[1.0, 0.0], [1.0, 1.0]]))
    array([[ 1., -1.],
           [ 0.,  0.]])
    """
    counts = (~np.isnan(rewards)).sum(axis=1, keepdims=True)
    centred = np.nan_to_num(rewards - np.nansum(rewards, axis=1, keepdims=True) / np.maximum(counts, 1))
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(counts, 1))
    advantages: Array = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-6)
    return advantages
