"""What `esalign distill` does: from a configuration to a student in a folder."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from esalign.commands.build import fit_problems, keep_prompts, load_splits, make_held_out
from esalign.commands.drive import drive, finish, settle
from esalign.commands.hub import find_hub
from esalign.config.distill import DistillConfig
from esalign.data import MiniBatches, Splits
from esalign.data.lengths import keep_fitting
from esalign.distill.learner import Distillation
from esalign.distill.models import load_student, make_judge, make_pair
from esalign.distill.rollout import Pair
from esalign.engines.loading import LoadedModel, load_model
from esalign.protocols import Backend
from esalign.report.card import CardFacts
from esalign.report.words import DISTILLATION
from esalign.run.folder import ADAPTER, MODEL, Outcome, alone_in, choose_folder, noting_resume
from esalign.run.learner import HeldOutSets
from esalign.run.reporter import Reporter
from esalign.run.verify import REQUIRED_AGREEMENT, Verification


@dataclass(frozen=True)
class StudentParts:
    """What a distillation is made of."""

    student: LoadedModel
    teacher: LoadedModel
    pair: Pair
    engine: Backend
    learner: Distillation
    splits: Splits
    held_out: HeldOutSets


def run_distill(
    config: DistillConfig, *, reporter: Reporter, resume: bool = False, interrupts: Sequence[int] = ()
) -> Outcome:
    """Distil, then write adapter, model card, result and report into the run's folder.

    Args:
        config: what to do.
        reporter: who tells the user.
        resume: go on with the newest run of the configuration's name.
        interrupts: when something appears in it, the run stops after the update that is under way, or, while the
            result is judged, after the problems that are.

    Raises:
        DistillationError: student and teacher do not fit, or numbers are not finite.
    """
    find_hub(config)
    folder = choose_folder(config, resume=resume)
    reporter.stage("loading data, rewards, student and teacher")
    with noting_resume(folder), ExitStack() as closing:
        parts = make_parts(config, closing)
        closing.enter_context(alone_in(folder))
        warn_of_templates(parts, reporter)
        config = settle(config, parts.learner)
        result = drive(
            config,
            folder,
            parts.learner,
            parts.splits,
            parts.held_out,
            kind="distillation",
            resume=resume,
            reporter=reporter,
            interrupts=interrupts,
            closing=closing,
        )
        if result is None:
            return Outcome(folder)
        student, whole = parts.student, config.student.tuning == "full"
        saved = folder / (MODEL if whole else ADAPTER)
        student.model.save_pretrained(saved)
        if whole:
            student.tokenizer.save_pretrained(saved)
        check = partial(_verify, config, saved, parts)
        return finish(folder, saved, result, check, name=config.run.name, facts=_facts(config), reporter=reporter)


def make_parts(config: DistillConfig, closing: ExitStack) -> StudentParts:
    """Make everything that a distillation needs; what must be closed is handed to ``closing``."""
    splits = load_splits(config)
    training, section = config.training, config.teacher
    student, parameters = load_student(config.student, device=training.device, seed=config.run.seed)
    teacher = load_model("teacher", section.path, section.adapter, dtype=section.dtype, device=training.device)
    pair = make_pair(student, teacher)
    engine = make_judge(student, pair.vocabulary, sequences=training.sequences)
    splits, held_out = _fit(config, engine, splits, make_held_out(config, splits, closing))
    learner = Distillation(
        pair,
        parameters,
        engine,
        MiniBatches(splits.train.examples, seed=config.run.seed),
        student.tokenizer.decode,
        behaviour=config.behaviour,
        loss=config.loss,
        training=training,
        max_tokens=config.sampling.max_tokens,
        seed=config.run.seed,
        rewarded=bool(config.rewards),
        reverse_kl_prompts=config.run.reverse_kl_prompts,
    )
    return StudentParts(student, teacher, pair, engine, learner, splits, held_out)


def _fit(config: DistillConfig, engine: Backend, splits: Splits, held_out: HeldOutSets) -> tuple[Splits, HeldOutSets]:
    """Find the prompts that are too long for the context or for the configuration."""
    keep, most = keep_prompts(config, engine), config.training.max_prompt_tokens
    reason, too_long = "training.max_prompt_tokens", config.data.too_long
    short = partial(keep_fitting, encode=engine.encode, most=most, reason=reason, too_long=too_long)
    return fit_problems(lambda data: keep(short(data)), splits, held_out)


def warn_of_templates(parts: StudentParts, reporter: Reporter) -> None:
    """Warn when chats are rendered in a way that the teacher does not know."""
    ours, theirs = parts.student.tokenizer.chat_template, parts.teacher.tokenizer.chat_template
    chats = any(not isinstance(example.prompt, str) for example in parts.held_out.validation.examples)
    if chats and theirs and ours != theirs:
        reporter.warn(
            "student and teacher have different chat templates; both read prompts in the student's, so the teacher may "
            "judge worse than it can: give both tokenizers one template"
        )


def _verify(config: DistillConfig, saved: Path, parts: StudentParts) -> Verification:
    """Compare greedy completions of the saved student, loaded anew, with those of the student in memory."""
    section, training = config.student, config.training
    whole = section.tuning == "full"
    path, adapter = (str(saved), None) if whole else (section.path, str(saved))
    again = load_model("student", path, adapter, dtype=section.dtype, device=training.device)
    reread = make_judge(again, parts.pair.vocabulary, sequences=training.sequences)
    sampling = replace(config.sampling.make(seed=0), temperature=0.0, stop=())
    prompts = [
        parts.engine.encode(example.prompt)
        for example in parts.held_out.validation.examples[: config.run.verify_prompts]
    ]
    meant, read = (engine.generate(np.zeros((1, 0)), prompts, sampling)[0] for engine in (parts.engine, reread))
    equal = [one.token_ids == other.token_ids for one, other in zip(meant, read, strict=True)]
    agreement = sum(equal) / len(equal)
    note = f"{sum(equal)} of {len(equal)} greedy completions are the same after loading with transformers + peft"
    if agreement < REQUIRED_AGREEMENT:
        return Verification(False, agreement, len(equal), f"only {note}: do not use this student, and report a bug")
    return Verification(True, agreement, len(equal), note)


def _facts(config: DistillConfig) -> CardFacts:
    whole = config.student.tuning == "full"
    support = "all" if config.loss.support is None else f"the top {config.loss.support}"
    rewards = ", ".join(reward.name for reward in config.rewards) or "none"
    return CardFacts(
        base_model=config.student.path,
        library="transformers" if whole else "peft",
        tags=("esalign", "distillation"),
        summary=f"A {'model' if whole else 'LoRA adapter'} distilled on-policy from `{config.teacher.path}` by "
        f"esalign, with\nbehaviour {config.behaviour.name!r} (trust-region behaviour blending: arXiv 2605.31159).",
        settings=(
            f"Data: `{config.data.source}`. Rewards: {rewards}.",
            f"{config.describe()}; learning rate {config.training.learning_rate:g}, seed {config.run.seed}.",
            f"Loss: {config.loss.divergence} on {support} tokens.",
        ),
        words=DISTILLATION,
    )
