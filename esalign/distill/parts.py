"""From a configuration to the models, the trainer and the held-out problems of a distillation."""

from dataclasses import dataclass

from esalign.distill.engine import StudentEngine
from esalign.distill.models import Loaded
from esalign.distill.rollout import Pair
from esalign.distill.trainer import Trainer
from esalign.run.run import HeldOut
from esalign.run.trackers import Tracker


@dataclass(frozen=True)
class Parts:
    """What a distillation is made of."""

    student: Loaded
    teacher: Loaded
    pair: Pair
    trainer: Trainer
    engine: StudentEngine
    validation: HeldOut
    test: HeldOut
    probe: HeldOut | None
    tracker: Tracker | None
