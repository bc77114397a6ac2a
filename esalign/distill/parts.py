"""From a configuration to the models, the trainer and the held-out problems of a distillation."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from esalign.assemble import load_splits, make_pool, make_probe
from esalign.data import MiniBatches, Splits
from esalign.distill.config import DistillConfig
from esalign.distill.engine import StudentEngine
from esalign.distill.models import Loaded, load_model, load_student, make_pair
from esalign.distill.rollout import Pair
from esalign.distill.trainer import Trainer
from esalign.metrics import Tracker, make_tracker
from esalign.run import HeldOut, Reporter


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


def make_parts(config: DistillConfig, folder: Path, closing: ExitStack) -> Parts:
    """Make everything that a distillation needs; what must be closed is handed to ``closing``."""
    splits = load_splits(config)
    training, section = config.training, config.teacher
    student, parameters = load_student(config)
    teacher = load_model("teacher", section.path, section.adapter, dtype=section.dtype, device=training.device)
    pair = make_pair(student, teacher)
    engine = StudentEngine(
        student,
        pair.vocabulary,
        sequences=training.sequences,
        batch_tokens=training.batch_tokens,
        max_prompt_tokens=training.max_prompt_tokens,
    )
    _check_prompts(engine, splits)
    batches = MiniBatches(splits.train.examples, seed=config.run.seed)
    pool = closing.enter_context(make_pool(config.rewards, config.scoring))
    tracker = make_tracker(
        config.run.tracker, name=config.run.name, folder=folder, config=config.model_dump(mode="json")
    )
    if tracker is not None:
        closing.callback(tracker.finish)
    return Parts(
        student=student,
        teacher=teacher,
        pair=pair,
        trainer=Trainer(config, pair, parameters, engine.encode, batches),
        engine=engine,
        validation=HeldOut(splits.validation.examples, pool),
        test=HeldOut(splits.test.examples, pool),
        probe=make_probe(config.probe, config, closing),
        tracker=tracker,
    )


def _check_prompts(engine: StudentEngine, splits: Splits) -> None:
    """Encode every prompt once, so that a bad one is found before the first update."""
    for dataset in (splits.train, splits.validation, splits.test):
        for example in dataset.examples:
            engine.encode(example.prompt)


def warn_of_templates(parts: Parts, reporter: Reporter) -> None:
    """Warn when chats are rendered in a way that the teacher does not know."""
    ours, theirs = parts.student.tokenizer.chat_template, parts.teacher.tokenizer.chat_template
    chats = any(not isinstance(example.prompt, str) for example in parts.validation.examples)
    if chats and theirs and ours != theirs:
        reporter.warn(
            "student and teacher have different chat templates; both read prompts in the student's, so the teacher may "
            "judge worse than it can: give both tokenizers one template"
        )
