"""From a configuration to the models, the trainer and the held-out problems of a distillation."""

from dataclasses import dataclass

from esalign.distill.rollout import Pair
from esalign.distill.trainer import Trainer
from esalign.engines.loading import LoadedModel
from esalign.protocols import Backend
from esalign.run.run import HeldOut
from esalign.run.trackers import Tracker


@dataclass(frozen=True)
class Parts:
    """What a distillation is made of."""

    student: LoadedModel
    teacher: LoadedModel
    pair: Pair
    trainer: Trainer
    engine: Backend
    validation: HeldOut
    test: HeldOut
    probe: HeldOut | None
    tracker: Tracker | None
