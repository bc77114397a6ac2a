"""What scores blocks of completions, and the threads of the run that keep it busy."""

import importlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from esalign import registry
from esalign.errors import RewardError
from esalign.rewards.judge import Item, Outcome
from esalign.rewards.load import Reward

MAX_BLOCK = 32
"""Items sent to a process at once. One by one, sending costs more than a cheap reward."""


class BlockScorer(Protocol):
    """What scores a block of items at a time: `esalign.rewards.process.Worker`, or one on another machine."""

    def start(self) -> None:
        """Get ready.

        Raises:
            RewardError: it cannot.
        """

    def score(self, items: Sequence[Item]) -> list[list[Outcome]]:
        """Return ``outcomes[i][r]``, what reward r made of item i.

        Raises:
            RewardError: a reward breaks its contract, or nothing can score any more.
        """


class Scorers:
    """Each is driven by a thread that takes work from a common queue.

    Args:
        workers: what scores, at least one.
        end: ends them, whatever they do.
    """

    def __init__(self, workers: Sequence[BlockScorer], end: Callable[[], None]) -> None:
        self._workers, self._end = workers, end
        self._waiting: deque[tuple[int, Item]] = deque()
        self._open = 0
        self._outcomes: dict[int, list[Outcome]] = {}
        self._failure: RewardError | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._drive, args=(w,), daemon=True) for w in self._workers]
        for thread in self._threads:
            thread.start()

    def submit(self, place: int, item: Item) -> None:
        """Have an item scored; its outcomes are collected under its place."""
        with self._changed:
            self._waiting.append((place, item))
            self._open += 1
            self._changed.notify()

    def collect(self) -> dict[int, list[Outcome]]:
        """Wait until nothing is left to score, and return the outcomes by place.

        Raises:
            RewardError: a reward breaks its contract, or cannot be loaded.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._open)
            if self._failure:
                raise self._failure
            outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def close(self) -> None:
        """End what scores, and the threads. Calling it twice is harmless."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._end()
        for thread in self._threads:
            thread.join()

    def _drive(self, worker: BlockScorer) -> None:
        """Feed a worker until they are closed or a reward turns out to be broken."""
        try:
            worker.start()
            while block := self._take():
                outcomes = worker.score([item for _, item in block])
                with self._changed:
                    self._outcomes.update((place, out) for (place, _), out in zip(block, outcomes, strict=True))
                    self._open -= len(block)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  (it is raised where the scores are collected)
            failure = (
                error if isinstance(error, RewardError) else RewardError(f"a completion cannot be scored: {error}")
            )
            with self._changed:
                self._failure = self._failure or failure
                self._changed.notify_all()

    def _take(self) -> list[tuple[int, Item]]:
        """Wait for work and take a fair share of it; nothing once they are closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed or self._failure)
            if self._closed or self._failure:
                return []
            share = max(1, min(MAX_BLOCK, len(self._waiting) // (2 * len(self._workers))))
            return [self._waiting.popleft() for _ in range(share)]


def slow_modules(rewards: Sequence[Reward]) -> list[str]:
    """Return the modules of registered rewards, and those that they name as slow to import."""
    modules: list[str] = []
    for reward in rewards:
        if isinstance(reward.spec, str) and reward.spec in registry.names(registry.REWARDS):
            module = registry.entry_point(registry.REWARDS, reward.spec).module
            modules += [module, *getattr(importlib.import_module(module), "PRELOAD", ())]
    return modules
