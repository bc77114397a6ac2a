"""The seeded mini-batches that all candidates of a generation share."""

from collections.abc import Sequence

import numpy as np

from esalign.errors import CheckpointError, DataError
from esalign.seeds import Use, generator
from esalign.types import Example, State


class MiniBatches:
    """Problems in random order, each once before any comes again.

    A batch may span the end of an epoch; it holds no problem twice, unless it is larger than the set.

    Args:
        examples: the problems, at least one.
        seed: decides the order.

    Raises:
        DataError: no problem.
    """

    def __init__(self, examples: Sequence[Example], *, seed: int) -> None:
        if not examples:
            raise DataError("no problems to draw mini-batches from")
        self._examples = tuple(examples)
        self._seed = seed
        self._epoch = 0
        self._waiting = self._shuffled(0)

    def __len__(self) -> int:
        """The number of problems."""
        return len(self._examples)

    def next(self, size: int) -> list[Example]:
        """Return the next ``size`` problems.

        Raises:
            DataError: size below 1.
        """
        if size < 1:
            raise DataError(f"a mini-batch of {size} problems was asked for, expected at least 1")
        chosen: list[int] = []
        while len(chosen) < size:
            chosen += self._take(size - len(chosen), avoid=chosen)
        return [self._examples[index] for index in chosen]

    def _take(self, count: int, avoid: Sequence[int]) -> list[int]:
        """Take up to ``count`` indices of this epoch, those to avoid last, and begin a new epoch when it is used up."""
        seen = set(avoid)
        order = [i for i in self._waiting if i not in seen] + [i for i in self._waiting if i in seen]
        taken, self._waiting = order[:count], order[count:]
        if not self._waiting:
            self._epoch += 1
            self._waiting = self._shuffled(self._epoch)
        return taken

    def _shuffled(self, epoch: int) -> list[int]:
        stream = generator(self._seed, Use.BATCHES, epoch)
        order: list[int] = stream.permutation(len(self._examples)).tolist()
        return order

    def state_dict(self) -> State:
        """Return what the next batches depend on, besides the problems."""
        return {
            "seed": self._seed,
            "num_examples": len(self._examples),
            "epoch": self._epoch,
            "waiting": np.array(self._waiting, dtype=np.int64),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a state: the batches that follow are those that would have followed there.

        Raises:
            CheckpointError: the state is of another number of problems.
        """
        if int(state["num_examples"]) != len(self._examples):
            raise CheckpointError(
                f"the checkpoint drew from {state['num_examples']} training problems, now there are "
                f"{len(self._examples)}: resume with the data of the run"
            )
        self._seed = int(state["seed"])
        self._epoch = int(state["epoch"])
        self._waiting = [int(index) for index in state["waiting"]]
