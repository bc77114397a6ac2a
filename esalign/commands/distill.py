"""What `esalign distill` does: from a configuration to a student in a folder."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from esalign.commands.build import load_splits, make_pool, make_probe
from esalign.config.distill import DistillConfig
from esalign.data import MiniBatches, Splits
from esalign.distill.models import load_student, make_judge, make_pair, save_student
from esalign.distill.parts import Parts
from esalign.distill.run import Distillation
from esalign.distill.trainer import Trainer
from esalign.engines.loading import load_model
from esalign.errors import DistillationError
from esalign.protocols import Backend
from esalign.report.card import write_student_card
from esalign.report.page import write_report
from esalign.run.folder import ADAPTER, MODEL, Outcome, alone_in, choose_folder, prepare_folder, write_result
from esalign.run.run import HeldOut, Reporter, Result
from esalign.run.trackers import make_tracker
from esalign.run.verify import REQUIRED_AGREEMENT, Verification


def run_distill(
    config: DistillConfig, *, reporter: Reporter, resume: bool = False, interrupts: Sequence[int] = ()
) -> Outcome:
    """Distil, then write adapter, model card, result and report into the run's folder.

    Args:
        config: what to do.
        reporter: who tells the user.
        resume: go on with the newest run of the configuration's name.
        interrupts: when something appears in it, the run stops after the update that is under way.

    Raises:
        DistillationError: student and teacher do not fit, or numbers are not finite.
    """
    folder = choose_folder(config, resume=resume)
    reporter.stage("loading data, rewards, student and teacher")
    with ExitStack() as closing:
        parts = make_parts(config, folder, closing)
        warn_of_templates(parts, reporter)
        closing.enter_context(alone_in(folder))
        prepare_folder(folder, config, resume=resume)
        run = Distillation(config, folder, parts, reporter, interrupts)
        result = run.execute()
        if result is None:
            return Outcome(folder)
        return write_outcome(config, folder, parts, result, reporter)


def make_parts(config: DistillConfig, folder: Path, closing: ExitStack) -> Parts:
    """Make everything that a distillation needs; what must be closed is handed to ``closing``."""
    splits = load_splits(config)
    training, section = config.training, config.teacher
    student, parameters = load_student(config)
    teacher = load_model("teacher", section.path, section.adapter, dtype=section.dtype, device=training.device)
    pair = make_pair(student, teacher)
    engine = make_judge(student, pair.vocabulary, sequences=training.sequences)
    _check_prompts(engine, splits, most=training.max_prompt_tokens)
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


def _check_prompts(engine: Backend, splits: Splits, *, most: int) -> None:
    """Encode every prompt once, so that a bad one is found before the first update."""
    for dataset in (splits.train, splits.validation, splits.test):
        for example in dataset.examples:
            count = len(engine.encode(example.prompt))
            if count > most:
                raise DistillationError(
                    f"a prompt has {count} tokens, expected 1 to {most}: drop it, or raise training.max_prompt_tokens"
                )


def warn_of_templates(parts: Parts, reporter: Reporter) -> None:
    """Warn when chats are rendered in a way that the teacher does not know."""
    ours, theirs = parts.student.tokenizer.chat_template, parts.teacher.tokenizer.chat_template
    chats = any(not isinstance(example.prompt, str) for example in parts.validation.examples)
    if chats and theirs and ours != theirs:
        reporter.warn(
            "student and teacher have different chat templates; both read prompts in the student's, so the teacher may "
            "judge worse than it can: give both tokenizers one template"
        )


def write_outcome(config: DistillConfig, folder: Path, parts: Parts, result: Result, reporter: Reporter) -> Outcome:
    """Write the student as it is, check that it answers the same when it is read back, and report."""
    whole = config.student.tuning == "full"
    saved = save_student(parts.student, config.student, folder / (MODEL if whole else ADAPTER))
    reporter.stage("loading what was saved with transformers and peft, and comparing its answers")
    verification = _verify(config, saved, parts)
    if not verification.good:
        reporter.warn(verification.note)
    write_student_card(saved, config, result, verification)
    write_result(folder, result, verification)
    write_report(folder)
    return Outcome(folder, result, verification)


def _verify(config: DistillConfig, saved: Path, parts: Parts) -> Verification:
    """Compare greedy answers of the saved student, loaded anew, with those of the student in memory."""
    section, training = config.student, config.training
    whole = section.tuning == "full"
    path, adapter = (str(saved), None) if whole else (section.path, str(saved))
    again = load_model("student", path, adapter, dtype=section.dtype, device=training.device)
    reread = make_judge(again, parts.pair.vocabulary, sequences=training.sequences)
    sampling = replace(config.sampling.make(seed=0), temperature=0.0, stop=())
    prompts = [
        parts.engine.encode(example.prompt) for example in parts.validation.examples[: config.run.verify_prompts]
    ]
    meant, read = (engine.generate(np.zeros((1, 0)), prompts, sampling)[0] for engine in (parts.engine, reread))
    equal = [one.token_ids == other.token_ids for one, other in zip(meant, read, strict=True)]
    agreement = sum(equal) / len(equal)
    note = f"{sum(equal)} of {len(equal)} greedy answers are the same after loading with transformers + peft"
    if agreement < REQUIRED_AGREEMENT:
        return Verification(False, agreement, len(equal), f"only {note}: do not use this student, and report a bug")
    return Verification(True, agreement, len(equal), note)
