"""What every fitness is made of."""

from dataclasses import dataclass

from esalign.data import MiniBatches
from esalign.protocols import Backend, Space
from esalign.rewards.pool import RewardPool
from esalign.types import Sampling


@dataclass(frozen=True)
class FitnessParts:
    """What a run hands to the fitness that its configuration names.

    Args:
        backend: generates and scores.
        batches: where each generation's problems come from.
        pool: the rewards.
        sampling: how completions are decoded; its seed is replaced each generation, the same for all candidates.
        seed: of the run.
        generations: the most that the run may do; None where there is no limit.
        model: the base model, where the fitness needs one of its own.
        space: what search vectors mean, where the fitness must know.
    """

    backend: Backend
    batches: MiniBatches
    pool: RewardPool
    sampling: Sampling
    seed: int = 0
    generations: int | None = None
    model: str | None = None
    space: Space | None = None
