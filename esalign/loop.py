"""Ask, evaluate, tell: the only place where the plugs meet. The fitness holds the engine: it generates and scores."""

from collections.abc import Iterator
from dataclasses import dataclass

from esalign.errors import OptimizerError
from esalign.protocols import Fitness, Optimizer, SteerableOptimizer
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
        fitness: it judges, and may steer the optimiser.
        generations: number of the last generation.
        done: generations that are finished already, when a run goes on from a checkpoint.

    Raises:
        OptimizerError: the fitness steers, and the optimiser is none that can be steered.
    """
    for number in range(done + 1, generations + 1):
        steering = fitness.prepare(optimizer.mean, number)
        if steering is not None:
            if not isinstance(optimizer, SteerableOptimizer):
                raise OptimizerError(
                    "the fitness sends the search back and shortens its steps, which this optimiser cannot do by "
                    "itself: search with esalign.Steered(optimizer)"
                )
            optimizer.steer(steering)
        candidates = optimizer.ask()
        evaluation = fitness.evaluate(candidates)
        if evaluation.usable:
            optimizer.tell(candidates, evaluation.fitness)
        yield Generation(number, candidates, evaluation)
