"""One run of any learner: advance, validate, keep the best, checkpoint, and judge the result on unseen problems."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esalign.config.reading import leaves
from esalign.errors import CheckpointError
from esalign.files import JsonLines, read_json_lines, write_atomically
from esalign.fitness.completions import SHOWN_SAMPLES, add_errors
from esalign.rewards import TrainerState
from esalign.run.checkpoint import Checkpoints
from esalign.run.evaluate import HeldOut, HeldOutResult
from esalign.run.folder import CHECKPOINTS, COMPLETIONS, METRICS, SAMPLES
from esalign.run.learner import REWARD, HeldOutSets, Learner, Step, VectorLearner, order_measures
from esalign.run.progress import Progress
from esalign.run.reporter import About, Reporter
from esalign.run.result import Comparison, Result
from esalign.run.statistics import Estimate, estimate, paired_difference, within_noise
from esalign.run.step_back import step_back
from esalign.run.trackers import Tracker
from esalign.seeds import Use, derive
from esalign.types import Array, Completion, Prompt, Sample, Sampling, State

STATE_VERSION = 6
JUDGING_RESULT = "judging the result"
UNLIMITED = 0  # as `flat_limit`: a learner that has no candidates


class _InterruptedError(Exception):
    """The user stopped the run while its result was judged; a resumed run judges it from the beginning."""


class Run:
    """A run in its folder.

    It keeps the state that validates best. Of equal ones the later is kept, and a best that validation cannot tell from
    the start (a paired gain of less than its standard error) gives way to the start.

    Args:
        learner: what gets better.
        folder: the run's directory.
        about: what people are told, with the limits to keep.
        sampling: how completions are decoded; the seed is the run's own for each use.
        held_out: the problems that it is judged on.
        flat_limit: generations in which all candidates are equal, before it stops; 0 for no limit.
        kl_prompts: validation problems for the KL to the start; 0 leaves it out.
        keep_sampled: whether the result goes back towards the start where sampled completions earn less than there.
        reporter: who tells the user.
        tracker: who gets the metrics, too.
        interrupts: when something appears in it, the run stops after the step that is under way, or, while the result
            is judged, after the problems that are.

    Raises:
        ConfigError: ``run.select_by`` is nothing that the learner is measured by.
        CheckpointError: the folder holds a checkpoint of another run.
    """

    def __init__(
        self,
        learner: Learner,
        folder: Path,
        about: About,
        *,
        sampling: Sampling,
        held_out: HeldOutSets,
        flat_limit: int = UNLIMITED,
        kl_prompts: int = 0,
        keep_sampled: bool = False,
        reporter: Reporter,
        tracker: Tracker | None = None,
        interrupts: Sequence[int] = (),
    ) -> None:
        self._learner, self._about, self._limits, self._sampling = learner, about, about.limits, sampling
        self._held_out = held_out
        self._flat_limit, self._kl_prompts, self._keep_sampled = flat_limit, kl_prompts, keep_sampled
        self._reporter, self._tracker, self._interrupts = reporter, tracker, interrupts
        self._folder = folder
        self._measures = order_measures(learner.measures, about.limits.select_by)
        folder.mkdir(parents=True, exist_ok=True)
        self._stage = ""  # what the user waits for, outside the search
        self._checkpoints = Checkpoints(folder / CHECKPOINTS)
        self._metrics = JsonLines(folder / METRICS)
        self._samples = JsonLines(folder / SAMPLES)
        self._progress = Progress(best=learner.snapshot())
        state = self._checkpoints.load_last()
        if state is not None:
            self._load(state)
        for file in (self._metrics, self._samples):
            file.keep_until(self._progress.done if state is not None else -1)
        reporter.start(about, folder, self._progress.done)

    def execute(self) -> Result | None:
        """Advance until a reason to stop, then judge on the test problems. None when the run was interrupted."""
        if not self._progress.start_scores:
            self._judge_start()
        if self._limit_reached() and self._progress.validated < self._progress.done:
            self._validate_last()
        while (reason := self._reason_to_stop()) is None:
            began = time.perf_counter()
            step = self._learner.advance(self._progress.done + 1)
            self._account(step, time.perf_counter() - began)
            self._record(step)
        if reason == "interrupted":
            return None
        try:
            return self._judge_result(reason)
        except _InterruptedError:
            return None

    def _account(self, step: Step, seconds: float) -> None:
        progress = self._progress
        progress.done += 1
        progress.search_seconds += seconds
        progress.generated_tokens += step.generated_tokens
        progress.prompt_tokens += step.prompt_tokens
        progress.scored_tokens += step.scored_tokens
        progress.flat = progress.flat + 1 if step.flat else 0

    def _record(self, step: Step) -> None:
        """Validate when it is time, then write metrics, samples and the checkpoint, in this order.

        A kill between them leaves lines that the resumed run drops, as their generation is not checkpointed.
        """
        number = self._progress.done
        row: dict[str, Any] = {"generation": number, **step.metrics}
        if number % self._limits.evaluate_every == 0 or self._limit_reached():
            row = self._validate(number, row)
        row |= self._progress.totals()
        row["machine"] |= step.machine
        self._metrics.append(row)
        self._append_samples(number, step.samples)
        if number % self._limits.checkpoint_every == 0 or self._interrupts or self._reason_to_stop():
            self._checkpoints.save(self._state(), number)
        self._reporter.generation(row)
        self._warn_when_flat(step.samples)
        if self._tracker is not None:
            found = leaves(row, between="/").items()
            self._tracker.log({key: float(value) for key, value in found if isinstance(value, int | float)}, number)

    def _validate(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """Judge the learner on the validation problems; a new best is kept. Returns the metrics row with its part."""
        progress = self._progress
        results = self._judge_validation()
        scores = results[self._measures[0]].scores
        gain = estimate(scores).mean - estimate(progress.best_scores).mean
        progress.stale = 0 if gain > 0 else progress.stale + 1
        progress.validated = number
        if gain >= 0:  # of equal ones, the later
            progress.best_generation, progress.best = number, self._learner.snapshot()
            progress.best_scores = scores
        return _validation_row(row, results)

    def _validate_last(self) -> None:
        """Validate the step that a resumed run ends with, as its limit was lowered to what is done already."""
        number = self._progress.done
        rows: list[dict[str, Any]] = [*read_json_lines(self._folder / METRICS), {"generation": number}]
        row = self._validate(number, next(one for one in rows if one["generation"] == number))
        totals = self._progress.totals()
        self._metrics.keep_until(number - 1)
        self._metrics.append({**row, **totals, "machine": {**row.get("machine", {}), **totals["machine"]}})
        self._checkpoints.save(self._state(), number)

    def _judge_start(self) -> None:
        """Judge the learner as it comes, on every held-out set."""
        progress = self._progress
        self._stage = "judging the start"
        results = self._judge_validation()
        progress.start = self._learner.snapshot()
        progress.start_validation = progress.best_scores = results[self._measures[0]].scores
        held_out = self._judge_held_out()
        progress.start_scores = {name: result.scores for name, result in held_out.items()}
        row: dict[str, Any] = {
            "generation": 0,
            **_validation_row({}, results),
            **{name: asdict(result.estimate) for name, result in held_out.items()},
            **self._progress.totals(),
        }
        for result in held_out.values():
            row = add_errors(row, result.errors, result.error_examples)
        self._metrics.append(row)
        self._append_samples(0, _first_samples(results)[:SHOWN_SAMPLES])
        self._write_texts("start", _first_samples(held_out))
        self._checkpoints.save(self._state(), 0)
        self._stage = ""
        self._reporter.generation(row)

    def _judge_result(self, reason: str) -> Result:
        """Judge the best state on the problems that nothing was chosen by.

        Raises:
            _InterruptedError: the user stopped the run.
        """
        progress = self._progress
        self._stage = JUDGING_RESULT
        generation = progress.best_generation
        if within_noise(progress.best_scores, progress.start_validation):
            generation = 0
        self._learner.restore(progress.best if generation else progress.start)
        share, tried = self._step_back() if generation else (1.0, {})
        results = self._judge_held_out()
        self._write_texts("result", _first_samples(results))
        comparisons = {
            name: Comparison(
                start=estimate(progress.start_scores[name]),
                result=result.estimate,
                gain=paired_difference(result.scores, progress.start_scores[name]),
            )
            for name, result in results.items()
            if name in progress.start_scores  # more may be measured than when the run began
        }
        return Result(
            reason=reason,
            generation=generation,
            share=share,
            sampled_gains=tried,
            comparisons=comparisons,
            samples=_first_samples(results)[:SHOWN_SAMPLES],
            kl=self._kl_to_start(generation),
            totals=self._progress.totals(),
        )

    def _step_back(self) -> tuple[float, dict[float, Estimate]]:
        """Restore a part of the way to the best where sampled completions do not earn more than at the start.

        Where all completions are sampled, or another measure decides, the best was chosen by what is wanted.

        Returns:
            The share of the way, and what sampled completions earn at those that were tried, less the start's.
        """
        learner, progress, validation = self._learner, self._progress, self._held_out.validation
        greedily = self._measures[0] == REWARD and self._sampling.temperature == 0
        if not (self._keep_sampled and greedily and isinstance(learner, VectorLearner)):
            return 1.0, {}

        def judge(share: float, problems: HeldOut, sampling: Sampling) -> HeldOutResult:
            learner.restore(learner.between(progress.start, progress.best, share))
            name = f"{share:.0%} of the way, validation/{'sampled' if sampling.temperature else 'greedy'}"
            return self._judge(name, REWARD, problems, sampling)

        def log_probs(share: float, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Array:
            learner.restore(learner.between(progress.start, progress.best, share))
            with self._judging(f"{share:.0%} of the way, probabilities"):
                return learner.log_probs(prompts, completions)

        greedy = self._decoding(Use.VALIDATION, 0.0)
        share, tried = step_back(judge, log_probs, validation, progress.start_validation, greedy)
        learner.restore(learner.between(progress.start, progress.best, share))
        return share, tried

    def _kl_to_start(self, generation: int) -> float | None:
        if not self._kl_prompts:
            return None
        if generation == 0:
            return 0.0
        self._heed_interrupts()
        validation = self._held_out.validation
        few = replace(validation, examples=validation.examples[: self._kl_prompts])
        return self._learner.kl_to_start(few, self._decoding(Use.KL_TO_START, self._sampling.temperature))

    def _judge_validation(self) -> dict[str, HeldOutResult]:
        """Return the result of every measure on the validation problems, the one that decides first."""
        sampling = self._decoding(Use.VALIDATION, self._sampling.temperature)
        return {name: self._judge("validation", name, self._held_out.validation, sampling) for name in self._measures}

    def _judge_held_out(self) -> dict[str, HeldOutResult]:
        """Judge on the test problems and the off-task probe, the measure and the decoding that decide first."""
        own = self._sampling.temperature
        decodings = {"test/greedy": 0.0, "test/sampled": own or 1.0}
        results = {}
        for measure in self._measures:
            if measure != REWARD:
                name = f"test/{measure}"
                results[name] = self._judge(name, measure, self._held_out.test, self._decoding(Use.TEST, own))
                continue
            for name in sorted(decodings, key=lambda name: decodings[name] != own):
                sampling = self._decoding(Use.TEST, decodings[name])
                results[name] = self._judge(name, REWARD, self._held_out.test, sampling)
        if self._held_out.probe is not None:
            results["probe"] = self._judge("probe", REWARD, self._held_out.probe, self._decoding(Use.PROBE, 0.0))
        return results

    def _judge(self, name: str, measure: str, held_out: HeldOut, sampling: Sampling) -> HeldOutResult:
        """Judge the learner by a measure; ``name`` is what the problems are called. While a stage is shown, tell it."""
        held_out = replace(held_out, state=TrainerState(self._progress.done, self._limits.generations))
        with self._judging(name.replace("/", ", ")) as stage:
            if stage:
                finished, total = itertools.count(1), len(held_out.examples)
                held_out = replace(held_out, on_completion=lambda: self._reporter.stage(stage, next(finished), total))
            result = self._learner.judge(measure, held_out, sampling)
        self._progress.held_out_tokens += result.generated_tokens
        return result

    @contextmanager
    def _judging(self, what: str) -> Iterator[str]:
        """Count the seconds of judging something. Lends what is told of it while a stage is shown, else nothing."""
        self._heed_interrupts()
        began = time.perf_counter()
        stage = f"{self._stage} ({what})" if self._stage else ""
        if stage:
            self._reporter.stage(stage)
        yield stage
        self._progress.held_out_seconds += time.perf_counter() - began

    def _heed_interrupts(self) -> None:
        if self._stage == JUDGING_RESULT and self._interrupts:
            raise _InterruptedError

    def _decoding(self, use: Use, temperature: float) -> Sampling:
        return replace(self._sampling, temperature=temperature, seed=derive(self._limits.seed, use))

    def _reason_to_stop(self) -> str | None:
        progress, patience = self._progress, self._limits.patience
        if reached := self._limit_reached():
            return reached
        if self._interrupts:
            return "interrupted"
        if patience is not None and progress.stale >= patience:
            return f"no better validation in {progress.stale} validations"
        if self._flat_limit and progress.flat >= self._flat_limit:
            return f"all candidates had the same fitness for {progress.flat} generations"
        return None

    def _limit_reached(self) -> str | None:
        """Say which limit that the user set is reached; the learner is always validated then."""
        progress, limits = self._progress, self._limits
        if progress.done >= limits.generations:
            return f"all {limits.generations} {self._about.step}s done"
        if limits.max_minutes is not None and progress.search_seconds >= 60 * limits.max_minutes:
            return f"{limits.max_minutes:g} minutes are over"
        if limits.max_generated_tokens is not None and progress.generated_tokens >= limits.max_generated_tokens:
            return f"{limits.max_generated_tokens} generated tokens are used up"
        return None

    def _warn_when_flat(self, samples: Sequence[Sample]) -> None:
        if self._progress.flat != 1:
            return
        shown = "; ".join(f"{sample.completion[:60]!r} -> {sample.reward}" for sample in samples)
        self._reporter.warn(
            "all candidates have the same fitness, so nothing can be learned: is the reward always the same, or sigma "
            f"too small? Completions of this generation: {shown}"
        )

    def _append_samples(self, generation: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._samples.append({"generation": generation, **sample.row()})

    def _write_texts(self, state: str, samples: Sequence[Sample]) -> None:
        """Write what the start or the result completes for each test problem; what the other one wrote stays."""
        file = self._folder / COMPLETIONS
        kept = [row for row in read_json_lines(file) if row.get("state") != state]
        rows = [*kept, *({"state": state, "problem": i, **sample.row()} for i, sample in enumerate(samples))]
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def _state(self) -> State:
        return {
            "version": STATE_VERSION,
            "fingerprint": self._learner.fingerprint,
            "measure": self._measures[0],
            "learner": self._learner.state_dict(),
            "progress": dict(vars(self._progress)),
        }

    def _load(self, state: State) -> None:
        if state.get("version") != STATE_VERSION or state.get("fingerprint") != self._learner.fingerprint:
            raise CheckpointError(
                "the checkpoint is of another adapter, space, student or version of esalign: start a new run "
                "(run.name=...)"
            )
        if state["measure"] != self._measures[0]:
            raise CheckpointError(
                f"the run was judged by {state['measure']!r} so far, now by {self._measures[0]!r}: set run.select_by "
                "to the former, or start a new run (run.name=...)"
            )
        self._learner.load_state_dict(state["learner"])
        self._progress = Progress(**state["progress"])


def _validation_row(row: Mapping[str, Any], results: Mapping[str, HeldOutResult]) -> dict[str, Any]:
    """Return a row with ``validation``, by the measure that decides, ``validation/<measure>`` of others, and errors."""
    keys = ("validation", *(f"validation/{name}" for name in list(results)[1:]))
    for key, result in zip(keys, results.values(), strict=True):
        row = {**add_errors(row, result.errors, result.error_examples), key: asdict(result.estimate)}
    return dict(row)


def _first_samples(results: Mapping[str, HeldOutResult]) -> tuple[Sample, ...]:
    """Return what was completed for the first set that was completed at all; others may be measured without."""
    return next((result.samples for result in results.values() if result.samples), ())
