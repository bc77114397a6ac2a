"""Surrogate ESSA (ours): candidates are judged by how they would have weighted completions that the mean gave.

Plain ESSA generates completions with every candidate and takes one number from each. Here the mean alone writes,
sampled several times per problem. Where rewards differ, the best and the worst completion are kept (down-sampling to
the largest variance, Xu et al. 2025, arXiv 2504.13818), until so many pairs are found (dynamic sampling, Yu et al.
2025, arXiv 2503.14476), and every candidate scores these *same* completions teacher-forced. Its fitness
is the clipped, importance-weighted objective of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7), with advantage 1
for the best and -1 for the worst. It takes forward passes alone, and one set of completions serves several generations.

It is trusted near the mean that wrote alone. Steps are as long as the divergence from that mean allows; candidates
beyond a bound rank behind all others, the farther the lower; and now and then the mean is judged by what it earns, on
fresh problems, beside the last one that was found good: if it earns less, the search goes back (`trust.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from esalign.errors import ConfigError, RewardError
from esalign.fitness.budget import MAX_LOG_RATIO, bounded, divergence
from esalign.fitness.completions import add_errors, complete, mean_of_samples
from esalign.fitness.parts import FitnessParts
from esalign.fitness.trust import TrustRegion
from esalign.seeds import Use, derive
from esalign.types import Array, Evaluation, Sample, State, Steering

Sequence = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's and a completion's token ids."""

MAX_TRIES = 8


@dataclass(frozen=True)
class Written:
    """What a mean wrote about some problems.

    Args:
        pairs: the best and the worst completion of each problem on which rewards differ.
        rewards: shape (prompts, samples).
        samples: a few completions, for people to read.
    """

    pairs: list[tuple[Sequence, Sequence]]
    rewards: Array
    samples: tuple[Sample, ...]


class SurrogateFitness:
    """PPO's clipped objective on completions of the mean, which all candidates score.

    Args:
        parts: what every fitness is made of; at temperature 0 all completions of a problem would be equal, so
            `temperature` stands in.
        prompts: problems sampled at a time, until enough pairs are found.
        samples: completions per problem, at least 2.
        pairs: problems that make a set; fewer if eight times `prompts` do not hold so many.
        refresh: generations that one set of completions serves.
        temperature: of the completions when the run's own is 0. Low, as the greedy one shall get better.
        clip: the ratio's distance from 1 at which a token's objective is flat.
        kl_limit: bound on the divergence from the mean that wrote them, nats per token; sets the length of steps.
        judge_every: sets of completions after which the mean is judged beside the last that was found good.
    """

    def __init__(
        self,
        parts: FitnessParts,
        *,
        prompts: int = 48,
        samples: int = 4,
        pairs: int = 16,
        refresh: int = 2,
        temperature: float = 0.15,
        clip: float = 0.2,
        kl_limit: float = 0.2,
        judge_every: int = 5,
    ) -> None:
        if samples < 2:
            raise ConfigError(f"fitness.samples is {samples}, expected at least 2 for fitness 'surrogate', say 4")
        for name, count in (("pairs", pairs), ("refresh", refresh), ("judge_every", judge_every)):
            if not count >= 1:
                raise ConfigError(f"fitness.options.{name} is {count!r}, expected at least 1")
        for name, value in (("temperature", temperature), ("clip", clip), ("kl_limit", kl_limit)):
            if not value > 0:
                raise ConfigError(f"fitness.options.{name} is {value!r}, expected a number above 0")
        self._backend, self._batches, self._pool = parts.backend, parts.batches, parts.pool
        self._sampling = replace(parts.sampling, temperature=parts.sampling.temperature or temperature)
        self._prompts, self._samples, self._seed = prompts, samples, parts.seed
        self._pairs, self._refresh, self._clip, self._kl_limit = pairs, refresh, clip, kl_limit
        self._judge_every, self._sets, self._trust = judge_every, 0, TrustRegion(kl_limit)
        self._age = refresh
        self._sequences: list[Sequence] = []
        self._advantages = np.zeros(0)
        self._old: Array = np.zeros(0)
        self._reward = float("nan")
        self._errors: dict[str, Any] = {}
        self._fresh: dict[str, int] = {}
        self._shown: tuple[Sample, ...] = ()

    def prepare(self, mean: Array, generation: int) -> Steering:
        """Let the mean sample anew when its last completions have served their generations, and judge it in its turn.

        Raises:
            RewardError: rewards differ on no problem.
        """
        self._fresh = {"generated_tokens": 0, "prompt_tokens": 0, "scored_tokens": 0}
        self._shown, self._errors = (), {}
        self._pool.state = replace(self._pool.state, global_step=generation - 1)
        self._age += 1
        if self._age > self._refresh:
            mean = self._renew(mean, generation)
        return self._trust.steering(mean)

    def _renew(self, mean: Array, generation: int) -> Array:
        """Sample a new set of completions, and return the mean that wrote it: the given one, or the trusted one."""
        self._age = 1
        self._sets += 1
        trusted = self._trust.trusted
        if trusted is None:
            trusted = self._trust.trusted = mean.copy()
        mean, written = self._judged_roll_out(mean, trusted, generation)
        pairs = list(written[0].pairs)
        while len(pairs) < self._pairs and len(written) < MAX_TRIES:
            written += self._roll_out(mean[None], generation)
            pairs += written[-1].pairs
        reward, before = float(np.nanmean([one.rewards for one in written])), self._reward
        if not pairs and reward < before and not np.array_equal(mean, trusted):
            self._trust.retreat()  # it can do so little by now that there is nothing to learn from
            return self._renew(trusted, generation)
        if not pairs:
            raise RewardError(
                f"{MAX_TRIES} sets of {self._prompts} problems x {self._samples} completions gave no problem on which "
                "rewards differ, so nothing can be learned: is the task far too easy or too hard, or the reward always "
                "the same?"
            )
        best, worst = zip(*pairs[: self._pairs], strict=True)
        self._sequences = [*best, *worst]
        self._advantages = np.repeat([1.0, -1.0], len(best))
        self._reward = reward
        self._shown = written[-1].samples
        self._old = self._log_probabilities(mean[None])[0]
        self._fresh["scored_tokens"] += self._scored(1)
        return mean

    def _judged_roll_out(self, mean: Array, trusted: Array, generation: int) -> tuple[Array, list[Written]]:
        """Return the mean to go on from, which one in so many sets is judged, and what it wrote about new problems."""
        if self._sets % self._judge_every or np.array_equal(mean, trusted):
            return mean, self._roll_out(mean[None], generation)
        both = self._roll_out(np.stack([mean, trusted]), generation)
        earned, before = mean_of_samples(np.stack([one.rewards for one in both]))
        if self._trust.retreats_from(mean, earned - before):
            return trusted, both[1:]
        return mean, both[:1]

    def _roll_out(self, means: Array, generation: int) -> list[Written]:
        """Sample completions of new problems, the same for each of some means, shape (means, dim)."""
        chosen = self._batches.next(min(self._prompts, len(self._batches)))
        examples = [example for example in chosen for _ in range(self._samples)]
        round_seed = derive(self._seed, Use.ROLLOUTS, generation, self._fresh["generated_tokens"])
        sampling = replace(self._sampling, seed=round_seed)
        completed = complete(self._backend, self._pool, means, examples, sampling).refuse_unscored()
        prompts = [self._backend.encode(example.prompt) for example in chosen]
        self._fresh["generated_tokens"] += completed.generated_tokens
        self._fresh["prompt_tokens"] += len(means) * self._samples * sum(len(prompt) for prompt in prompts)
        self._errors = add_errors(self._errors, completed.errors, completed.error_examples)
        tables = completed.rewards.reshape(len(means), len(chosen), self._samples)
        written = []
        for i, (row, table) in enumerate(zip(completed.rows, tables, strict=True)):
            empty = [not completion.token_ids for completion in row]  # nothing to score
            best, worst = extremes(np.where(np.reshape(empty, table.shape), np.nan, table))
            sequences = [(prompts[j // self._samples], c.token_ids) for j, c in enumerate(row)]
            pairs = [(sequences[good], sequences[bad]) for good, bad in zip(best, worst, strict=True)]
            written.append(Written(pairs, table, completed.samples(examples, candidate=i)))
        return written

    def evaluate(self, candidates: Array) -> Evaluation:
        """Score the kept completions with every candidate.

        Raises:
            RewardError: however short the steps, candidates diverge by more than the limit.
        """
        log_ratio = np.clip(self._log_probabilities(candidates) - self._old, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        advantages = np.repeat(self._advantages, [len(completion_ids) for _, completion_ids in self._sequences])
        kl = divergence(log_ratio)
        too_far = bool(np.median(kl) > self._kl_limit)  # for the objective to say which of them are good
        if self._age == 1:  # the mean is where it was when it wrote, so all divergence is of the steps
            self._trust.note(kl)
        if too_far and self._trust.exhausted:
            raise RewardError(
                f"candidates that hardly differ from the mean still diverge from it by {np.median(kl):.2g} nats a "
                f"token, fitness.options.kl_limit is {self._kl_limit:g}: raise it, or let the engine compute more "
                "precisely (backend.dtype)"
            )
        if too_far:
            self._age = 0 if self._age == 1 else self._refresh  # shorter steps on these completions, or new ones
        return Evaluation(
            fitness=bounded(clipped_objective(log_ratio, advantages, self._clip), kl, self._kl_limit),
            usable=not too_far,
            metrics={
                "reward": self._reward,
                "kl_to_rollouts": float(kl.mean()),
                "beyond_kl_limit": float((kl > self._kl_limit).mean()),
                "clipped": float((np.abs(np.expm1(log_ratio)) > self._clip).mean()),
                "rollouts": float(len(self._sequences)),
                "retreats": float(self._trust.retreats),
                "told": float(not too_far),
                **self._errors,
            },
            generated_tokens=self._fresh["generated_tokens"],
            prompt_tokens=self._fresh["prompt_tokens"],
            scored_tokens=self._fresh["scored_tokens"] + self._scored(len(candidates)),
            samples=self._shown,
        )

    def _log_probabilities(self, candidates: Array) -> Array:
        """Return log-probabilities of all completions' tokens, one after another, shape (population, tokens)."""
        rows = self._backend.score(candidates, self._sequences)
        return np.stack([np.concatenate(row) for row in rows]).astype(np.float64)

    def _scored(self, population: int) -> int:
        return population * sum(len(prompt) + len(completion_ids) for prompt, completion_ids in self._sequences)

    def state_dict(self) -> State:
        """The place in the problems, and the completions in use."""
        return {
            "batches": self._batches.state_dict(),
            "age": self._age,
            "prompts": [list(prompt) for prompt, _ in self._sequences],
            "completions": [list(completion_ids) for _, completion_ids in self._sequences],
            "advantages": self._advantages,
            "old": self._old,
            "reward": self._reward,
            "sets": self._sets,
            "trust": self._trust.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue with those completions."""
        self._batches.load_state_dict(state["batches"])
        self._age = state["age"]
        pairs = zip(state["prompts"], state["completions"], strict=True)
        self._sequences = [(tuple(prompt), tuple(completion_ids)) for prompt, completion_ids in pairs]
        self._advantages, self._old, self._reward = state["advantages"], state["old"], state["reward"]
        if "trust" in state:  # there was none once
            self._sets = state["sets"]
            self._trust.load_state_dict(state["trust"])


def extremes(rewards: Array) -> tuple[Array, Array]:
    """Return the places of the best and the worst completion of each problem whose rewards differ, the first of equals.

    Args:
        rewards: shape (prompts, samples), NaN where there is none.

    >>> extremes(np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.5, np.nan, 0.2]]))
    (array([1, 6]), array([0, 8]))
    """
    known = ~np.isnan(rewards)
    best = np.where(known, rewards, -np.inf).argmax(axis=1)
    worst = np.where(known, rewards, np.inf).argmin(axis=1)
    rows = np.arange(len(rewards))
    differs = rewards[rows, best] > rewards[rows, worst]  # false where all are NaN
    first = rows * rewards.shape[1]
    return (first + best)[differs], (first + worst)[differs]


def clipped_objective(log_ratio: Array, advantages: Array, clip: float) -> Array:
    """Return PPO's objective, ``mean(min(r A, clip(r, 1 - clip, 1 + clip) A))``, shape (population,).

    Args:
        log_ratio: log of r, candidate over mean, shape (population, tokens).
        advantages: A, shape (tokens,).
        clip: epsilon of the paper.
    """
    ratio = np.exp(log_ratio)
    objective: Array = np.minimum(ratio * advantages, np.clip(ratio, 1 - clip, 1 + clip) * advantages).mean(axis=1)
    return objective
