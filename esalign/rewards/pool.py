"""Scores completions in processes beside generation, each with a time limit; nothing that fails is silently 0."""

import contextlib
import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from esalign.errors import RewardError
from esalign.rewards.here import judge_here
from esalign.rewards.judge import Item, Outcome
from esalign.rewards.load import Reward, RewardFunction, TrainerState, load_reward
from esalign.rewards.process import Template, Worker, pack
from esalign.rewards.scorers import Scorers, slow_modules
from esalign.types import Example


@dataclass(frozen=True)
class Scores:
    """What a pool made of the completions since the last collection.

    Args:
        rewards: by key, the weighted sum of the rewards that did not abstain; None where all did.
        components: by name of the reward, then by key, the single reward before weighting; None where it abstained.
        errors: number of completions by ``"name/error"`` (raised, died, not finite) and ``"name/timeout"``; only those
            that occurred.
        error_examples: one message for each of these.
        abstentions: number of completions by name of the reward, for those that abstained.
    """

    rewards: Mapping[Hashable, float | None]
    components: Mapping[str, Mapping[Hashable, float | None]]
    errors: Mapping[str, int] = field(default_factory=dict)
    error_examples: Mapping[str, str] = field(default_factory=dict)
    abstentions: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_errors(self) -> int:
        """Number of failures of all kinds."""
        return sum(self.errors.values())

    @property
    def all_failed(self) -> bool:
        """Whether there were completions, and no reward could score any of them."""
        return 0 < self.num_errors == sum(len(values) for values in self.components.values())


class RewardPool:
    """Weighted rewards, scored in processes of their own.

    Equal completions to the same problem are scored once per collection. The results do not depend on the number of
    workers. A failed reward counts as ``error_reward`` in the sum, and is counted in `Scores.errors`.

    Args:
        rewards: (reward, weight) pairs; a reward is loaded, or what `load_reward` takes.
        workers: number of processes; 0 scores in this one, where code in C has no time limit.
        timeout: seconds for one reward of one completion.
        error_reward: what a failed reward counts as.
        elsewhere: starts what scores, given the loaded rewards, in place of processes in this machine.

    Attributes:
        names: the rewards' names, made distinct where two were equal.
        state: how far the run is, for rewards with a ``trainer_state``; whoever runs keeps it up to date.

    Raises:
        RewardError: a reward that cannot be loaded, or one that cannot be sent to another process.
    """

    def __init__(
        self,
        rewards: Sequence[tuple[Reward | RewardFunction | str, float]],
        *,
        workers: int = 1,
        timeout: float = 10.0,
        error_reward: float = 0.0,
        elsewhere: Callable[[Sequence[Reward]], Scorers] | None = None,
    ) -> None:
        if workers < 0 or timeout <= 0:
            raise RewardError(f"workers is {workers} and timeout {timeout}, expected at least 0, and above 0 seconds")
        self._rewards = [load_reward(reward) for reward, _ in rewards]
        self._weights = [float(weight) for _, weight in rewards]
        self.names = _distinct([reward.name for reward in self._rewards])
        self._error_reward, self._timeout = error_reward, timeout
        self.state = TrainerState()
        self._wants_ids = any("completion_ids" in reward.named for reward in self._rewards)
        self._numbers = itertools.count()
        self._batch = _Batch(self._numbers)
        self._scorers: Scorers | None = None
        if elsewhere is not None:
            self._scorers = elsewhere(self._rewards)
        elif workers and rewards:
            packed, template = pack(self._rewards), Template(slow_modules(self._rewards))
            processes = [Worker(template, packed, count=len(rewards), timeout=timeout) for _ in range(workers)]
            self._scorers = Scorers(processes, template.close)
        else:  # in workers this is done before they are timed, too
            for module in slow_modules(self._rewards):
                with contextlib.suppress(ImportError):  # who needs the module says so when it scores
                    importlib.import_module(module)

    def submit(self, key: Hashable, example: Example, completion: str, completion_ids: Sequence[int] = ()) -> None:
        """Have a completion scored. It returns at once, unless there are no workers.

        Args:
            key: what its scores are collected under.
            example: the problem.
            completion: what the model wrote.
            completion_ids: its tokens, for rewards that ask for them.

        Raises:
            RewardError: a key that was submitted before, since the last collection.
        """
        ids = tuple(completion_ids) if self._wants_ids else ()
        place = self._batch.add(key, example, completion, ids)
        if place is None:
            return
        item = Item(example.prompt, example.columns, completion, ids, self.state)
        if self._scorers is None:
            self._batch.outcomes[place] = [judge_here(reward, item, self._timeout) for reward in self._rewards]
        else:
            self._scorers.submit(place, item)

    def collect(self) -> Scores:
        """Wait for all that was submitted, and return it.

        Raises:
            RewardError: a reward breaks its contract, or cannot be loaded by the workers.
        """
        batch, self._batch = self._batch, _Batch(self._numbers)
        if self._scorers is not None:
            batch.outcomes.update(self._scorers.collect())
        return self._combine(batch)

    def score(self, examples: Sequence[Example], completions: Sequence[str]) -> Scores:
        """Score one completion per example; the keys are their indices."""
        for key, (example, completion) in enumerate(zip(examples, completions, strict=True)):
            self.submit(key, example, completion)
        return self.collect()

    def _combine(self, batch: "_Batch") -> Scores:
        rewards: dict[Hashable, float | None] = {}
        components: dict[str, dict[Hashable, float | None]] = {name: {} for name in self.names}
        errors: Counter[str] = Counter()
        abstentions: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for key, place in batch.places.items():
            for name, outcome in zip(self.names, batch.outcomes[place], strict=True):
                components[name][key] = self._error_reward if outcome.failure else outcome.value
                if outcome.failure:
                    errors[f"{name}/{outcome.failure}"] += 1
                    examples.setdefault(f"{name}/{outcome.failure}", outcome.message)
                abstentions[name] += components[name][key] is None
            rewards[key] = self._sum([components[name][key] for name in self.names])
        return Scores(rewards, components, dict(errors), examples, dict(+abstentions))

    def _sum(self, values: Sequence[float | None]) -> float | None:
        present = [weight * value for weight, value in zip(self._weights, values, strict=True) if value is not None]
        return sum(present) if present else None

    def close(self) -> None:
        """End the processes. Calling it twice is harmless."""
        if self._scorers is not None:
            self._scorers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(result)


class _Batch:
    """What was submitted since the last collection: keys -> places of distinct completions -> outcomes.

    Args:
        numbers: where places come from; no two batches share one, should a collection be interrupted.
    """

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self.places: dict[Hashable, int] = {}
        self.outcomes: dict[int, list[Outcome]] = {}
        self._known: dict[tuple[int, str, tuple[int, ...]], int] = {}
        self._examples: list[Example] = []  # alive, so that their identities stay their own

    def add(self, key: Hashable, example: Example, completion: str, ids: tuple[int, ...]) -> int | None:
        """Note a completion, and return its place when an equal one was not submitted before."""
        if key in self.places:
            raise RewardError(f"a completion with the key {key!r} was submitted before, and not collected yet")
        known_as = (id(example), completion, ids)
        place = self._known.get(known_as)
        if place is not None:
            self.places[key] = place
            return None
        self.places[key] = self._known[known_as] = next(self._numbers)
        self._examples.append(example)
        return self.places[key]
