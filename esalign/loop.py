"""Ask, evaluate, tell: the only place where the plugs meet. The fitness holds the engine: it generates and scores."""

from collections.abc import Iterator
from dataclasses import dataclass

from esalign.protocols import Fitness, Optimizer
from esalign.types import Array, Evaluation


@dataclass(frozen=True)
class Generation:
    """One finished generation.

    Args:
        number: 1 for the first.
        candidates: shape (population, dim).
        evaluation: their fitness, and what came with it.
    """

    number: int
    candidates: Array
    evaluation: Evaluation


def search(optimizer: Optimizer, fitness: Fitness, *, generations: int, done: int = 0) -> Iterator[Generation]:
    """Search, yielding after each generation; the caller may stop, checkpoint or evaluate at every step.

    Args:
        optimizer: it proposes.
        fitness: it judges.
        generations: number of the last generation.
        done: generations that are finished already, when a run goes on from a checkpoint.
    """
    for number in range(done + 1, generations + 1):
        fitness.prepare(optimizer.mean, number)
        candidates = optimizer.ask()
        evaluation = fitness.evaluate(candidates)
        optimizer.tell(candidates, evaluation.fitness)
        yield Generation(number, candidates, evaluation)
