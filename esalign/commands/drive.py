"""What `esalign run` and `esalign distill` share: a learner is driven in its folder, and what it leaves is written."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from esalign.config import Experiment
from esalign.config.distill import DistillConfig
from esalign.config.run import RunConfig
from esalign.data import Splits
from esalign.errors import EsalignError
from esalign.files import write_json
from esalign.report.card import CardFacts, write_card
from esalign.report.page import write_report
from esalign.run.folder import DATA, Outcome, prepare_folder, write_result
from esalign.run.inputs import hash_inputs
from esalign.run.learner import HeldOutSets, Learner, order_measures
from esalign.run.reporter import About, Reporter
from esalign.run.result import Result
from esalign.run.run import Run
from esalign.run.trackers import make_tracker
from esalign.run.verify import Verification

C = TypeVar("C", RunConfig, DistillConfig)


def settle(config: C, learner: Learner) -> C:
    """Return the configuration with the measure that chooses the best written out, for the files of the run."""
    run = config.run
    chosen = order_measures(learner.measures, run.select_by)[0]
    return config.model_copy(update={"run": run.model_copy(update={"select_by": chosen})})


def drive(
    config: C,
    folder: Path,
    learner: Learner,
    splits: Splits,
    held_out: HeldOutSets,
    *,
    kind: str,
    resume: bool,
    reporter: Reporter,
    interrupts: Sequence[int],
    closing: ExitStack,
    flat_limit: int = 0,
    kl_prompts: int = 0,
    keep_sampled: bool = False,
) -> Result | None:
    """Run a learner in its folder; afterwards it is the result. None when the run was interrupted."""
    if not prepare_folder(folder, config, _hash(config, splits, held_out), resume=resume):
        reporter.warn(
            "this run did not write down what it began with, so nobody checks that problems, rewards and weights are "
            "the same"
        )
    notes = (*splits.train.alias_notes, *splits.notes)
    write_json(folder / DATA, {"notes": [asdict(note) for note in notes]})
    for note in splits.notes if not resume else ():
        if note.kind in ("dropped", "changed"):
            reporter.warn(f"{note.kind}: {note.text}")
    settings = config.model_dump(mode="json")
    tracker = make_tracker(config.run.tracker, name=config.run.name, folder=folder, config=settings)
    if tracker is not None:
        closing.callback(tracker.finish)
    run = Run(
        learner,
        folder,
        About(kind, config.describe(), config.run, config.sampling.max_tokens),
        sampling=config.sampling.make(seed=config.run.seed),
        held_out=held_out,
        flat_limit=flat_limit,
        kl_prompts=kl_prompts,
        keep_sampled=keep_sampled,
        reporter=reporter,
        tracker=tracker,
        interrupts=interrupts,
    )
    return run.execute()


def _hash(config: Experiment, splits: Splits, held_out: HeldOutSets) -> dict[str, str]:
    problems = {
        "training": splits.train.examples,
        "validation": held_out.validation.examples,
        "test": held_out.test.examples,
    }
    if held_out.probe is not None:
        problems["probe"] = tuple(held_out.probe.examples)
    return hash_inputs(config, problems)


def finish(
    folder: Path,
    saved: Path,
    result: Result,
    check: Callable[[], Verification],
    *,
    name: str,
    facts: CardFacts,
    reporter: Reporter,
) -> Outcome:
    """Write model card, result and report of what was saved; then check it, and write what came of that, too."""

    def write(verification: Verification | None) -> None:
        write_card(saved, name, facts, result, verification)
        write_result(folder, result, verification)
        write_report(folder)

    write(None)
    reporter.stage("loading what was saved by itself, and comparing it")
    try:
        verification = check()
    except Exception as error:  # noqa: BLE001  (of engines and libraries; the result is written, and must not be lost)
        why = str(error) if isinstance(error, EsalignError) else f"{type(error).__name__}: {error}"
        verification = Verification(True, None, 0, f"not compared, as the check failed: {' '.join(why.split())[:300]}")
        reporter.warn(verification.note)
    if not verification.good:
        reporter.warn(verification.note)
    write(verification)
    return Outcome(folder, saved, result, verification)
