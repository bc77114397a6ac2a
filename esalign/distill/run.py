"""A distillation in its folder: update, validate, keep the best, checkpoint, and report on unseen problems."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esalign.config.distill import DistillConfig
from esalign.distill.held_out import held_out_distance
from esalign.distill.parts import Parts
from esalign.distill.rollout import RolloutOptions
from esalign.errors import CheckpointError
from esalign.files import JsonLines
from esalign.fitness.completions import SHOWN_SAMPLES
from esalign.run.checkpoint import Checkpoints
from esalign.run.evaluate import HeldOutResult, evaluate
from esalign.run.run import PROBE, TEST, VALIDATION, Comparison, HeldOut, Reporter, Result, flatten, interval, totals
from esalign.run.statistics import estimate, paired_difference
from esalign.seeds import derive_seed
from esalign.types import Array, Sample, Sampling, State

STATE_VERSION = 1
DISTANCE = 12  # what the seed of held-out distances is derived with
CLOSENESS = "test/minus reverse KL"


@dataclass
class Progress:
    """What a distillation knows beside its trainer; all of it goes into the checkpoint."""

    done: int = 0
    best_score: float = float("-inf")
    best_generation: int = 0
    best_weights: dict[str, Array] = field(default_factory=dict)
    stale: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    teacher_tokens: int = 0
    held_out_tokens: int = 0
    search_seconds: float = 0.0
    held_out_seconds: float = 0.0
    start_scores: dict[str, Array] = field(default_factory=dict)


class Distillation:
    """A distillation in its folder.

    Args:
        config: what to do.
        folder: the run's directory.
        parts: models, trainer and held-out problems.
        reporter: who tells the user.
        interrupts: when something appears in it, the run stops after the update that is under way.

    Raises:
        CheckpointError: the folder holds a checkpoint of another run.
    """

    def __init__(
        self, config: DistillConfig, folder: Path, parts: Parts, reporter: Reporter, interrupts: Sequence[int] = ()
    ) -> None:
        self._config, self._parts, self._reporter, self._interrupts = config, parts, reporter, interrupts
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._progress = Progress(best_weights=parts.trainer.weights())
        state = self._checkpoints.load_last()
        if state is not None:
            self._load(state)
        for file in (self._metrics, self._samples):
            file.keep_until(self._progress.done if state is not None else -1)
        reporter.start(config, folder, self._progress.done)

    def execute(self) -> Result | None:
        """Update until a reason to stop, then report on the test problems. None when the run was interrupted."""
        if not self._progress.start_scores:
            self._judge_start()
        reason = self._reason_to_stop()
        while reason is None:
            self._update()
            reason = self._reason_to_stop()
        if reason == "interrupted":
            return None
        return self._judge_result(reason)

    def _update(self) -> None:
        """Do one update; then validate when it is time, and write metrics, samples and the checkpoint, in this order.

        A kill between them leaves lines that the resumed run drops, as their update is not checkpointed.
        """
        progress = self._progress
        metrics, rollouts = self._parts.trainer.update(progress.done)
        progress.done += 1
        progress.search_seconds += metrics["rollout_seconds"] + metrics["update_seconds"]
        progress.generated_tokens += metrics["rollout_tokens"]
        progress.teacher_tokens += metrics["rollout_tokens"] + metrics["prompt_tokens"]
        progress.prompt_tokens += metrics["prompt_tokens"]
        row = self._row(metrics)
        number = progress.done
        if number % self._config.run.evaluate_every == 0 or self._limit_reached():
            row |= self._validate(number)
        row |= self._totals()
        row["machine"] |= _speeds(metrics)
        self._metrics.append(row)
        decode = self._parts.student.tokenizer.decode
        for rollout in rollouts[:SHOWN_SAMPLES]:
            sample = Sample(decode(rollout.prompt_ids), decode(rollout.token_ids), None)
            self._samples.append({"generation": number, **sample.row()})
        if self._must_checkpoint(number):
            self._checkpoints.save(self._state(), number)
        self._reporter.generation(row)
        if self._parts.tracker is not None:
            self._parts.tracker.log(flatten(row), number)

    def _row(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics of an update; the fitness is what is maximised, minus the loss."""
        apart = ("rollout_tokens", "prompt_tokens", "rollout_seconds", "update_seconds")
        own = {name: value for name, value in metrics.items() if name not in apart}
        return {"generation": self._progress.done, "fitness": {"mean": -metrics["loss"]}, **own}

    def _must_checkpoint(self, number: int) -> bool:
        return number % self._config.run.checkpoint_every == 0 or bool(self._interrupts or self._reason_to_stop())

    def _validate(self, number: int) -> dict[str, Any]:
        """Judge the student on the validation problems; a new best is kept."""
        progress = self._progress
        result = self._evaluate(self._parts.validation, VALIDATION, self._config.sampling.temperature)
        if result.estimate.mean > progress.best_score:
            progress.best_score, progress.best_generation = result.estimate.mean, number
            progress.best_weights, progress.stale = self._parts.trainer.weights(), 0
        else:
            progress.stale += 1
        return {"validation": interval(result.estimate), **self._distance_row()}

    def _distance_row(self) -> dict[str, Any]:
        if not self._config.run.kl_prompts:
            return {}
        return {"validation/reverse_kl": interval(estimate(self._distance(self._parts.validation)))}

    def _judge_start(self) -> None:
        """Judge the student as it comes, on every held-out set."""
        progress = self._progress
        self._reporter.stage("judging the start on held-out problems")
        validation = self._evaluate(self._parts.validation, VALIDATION, self._config.sampling.temperature)
        progress.best_score = validation.estimate.mean
        scores, _ = self._held_out_scores()
        progress.start_scores = scores
        row: dict[str, Any] = {
            "generation": 0,
            "validation": interval(validation.estimate),
            **self._distance_row(),
            **{name: interval(estimate(values)) for name, values in scores.items()},
            **self._totals(),
        }
        self._metrics.append(row)
        for sample in validation.samples:
            self._samples.append({"generation": 0, **sample.row()})
        self._checkpoints.save(self._state(), 0)
        self._reporter.generation(row)

    def _judge_result(self, reason: str) -> Result:
        """Judge the best student on the problems that nothing was chosen by; it stays in the model."""
        progress = self._progress
        self._reporter.stage("judging the result on held-out problems")
        self._parts.trainer.load_weights(progress.best_weights)
        scores, samples = self._held_out_scores()
        before = progress.start_scores
        return Result(
            reason=reason,
            generation=progress.best_generation,
            vector=np.zeros(0),
            comparisons={
                name: Comparison(estimate(before[name]), estimate(after), paired_difference(after, before[name]))
                for name, after in scores.items()
                if name in before
            },
            samples=samples,
            kl=None,
            totals=self._totals(),
        )

    def _held_out_scores(self) -> tuple[dict[str, Array], tuple[Sample, ...]]:
        """Return scores by held-out set, the run's own decoding first, and a few answers."""
        own = self._config.sampling.temperature
        decodings = {"test/greedy": 0.0, "test/sampled": own or 1.0}
        names = sorted(decodings, key=lambda name: decodings[name] != own)
        results = {name: self._evaluate(self._parts.test, TEST, decodings[name]) for name in names}
        if self._parts.probe is not None:
            results["probe"] = self._evaluate(self._parts.probe, PROBE, 0.0)
        scores = {name: result.scores for name, result in results.items()}
        if self._config.run.kl_prompts:
            scores[CLOSENESS] = -self._distance(self._parts.test)
        return scores, results[names[0]].samples

    def _distance(self, held_out: HeldOut) -> Array:
        """Return the reverse KL to the teacher on the first held-out problems, shape (problems,)."""
        began = time.perf_counter()
        examples = held_out.examples[: self._config.run.kl_prompts]
        prompts = [self._parts.engine.encode(example.prompt) for example in examples]
        options = RolloutOptions(self._config.sampling.max_tokens, sequences=min(16, self._config.training.sequences))
        distance = held_out_distance(self._parts.pair, prompts, options, seed=self._seed(DISTANCE))
        self._progress.held_out_seconds += time.perf_counter() - began
        self._progress.held_out_tokens += distance.generated_tokens
        return distance.nats

    def _evaluate(self, held_out: HeldOut, use: int, temperature: float) -> HeldOutResult:
        began = time.perf_counter()
        section = self._config.sampling.model_copy(update={"temperature": temperature})
        sampling: Sampling = section.make(seed=self._seed(use))
        result = evaluate(self._parts.engine, held_out.pool, np.zeros(0), held_out.examples, sampling)
        self._progress.held_out_seconds += time.perf_counter() - began
        self._progress.held_out_tokens += result.generated_tokens
        return result

    def _seed(self, use: int) -> int:
        return derive_seed(self._config.run.seed, use, 1)

    def _reason_to_stop(self) -> str | None:
        patience = self._config.run.patience
        if reached := self._limit_reached():
            return reached
        if self._interrupts:
            return "interrupted"
        if patience is not None and self._progress.stale >= patience:
            return f"no better validation in {self._progress.stale} validations"
        return None

    def _limit_reached(self) -> str | None:
        progress, limits = self._progress, self._config.run
        if progress.done >= limits.generations:
            return f"all {limits.generations} updates done"
        if limits.max_minutes is not None and progress.search_seconds >= 60 * limits.max_minutes:
            return f"{limits.max_minutes:g} minutes of updates are over"
        if limits.max_rollout_tokens is not None and progress.generated_tokens >= limits.max_rollout_tokens:
            return f"{limits.max_rollout_tokens} rollout tokens are used up"
        return None

    def _totals(self) -> dict[str, Any]:
        return totals(self._progress, scored=self._progress.teacher_tokens)

    def _state(self) -> State:
        return {
            "version": STATE_VERSION,
            "trainer": self._parts.trainer.state_dict(),
            "progress": dict(vars(self._progress)),
        }

    def _load(self, state: State) -> None:
        if state.get("version") != STATE_VERSION or "trainer" not in state:
            raise CheckpointError("the checkpoint is no distillation's: start a new run (run.name=...)")
        self._parts.trainer.load_state_dict(state["trainer"])
        self._progress = Progress(**state["progress"])


def _speeds(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what an update's rollouts and gradient took, for the part of the metrics that depends on the machine."""
    seconds = metrics["rollout_seconds"]
    return {
        "rollout_seconds": round(seconds, 4),
        "update_seconds": round(metrics["update_seconds"], 4),
        "rollout_tokens_per_second": round(metrics["rollout_tokens"] / max(seconds, 1e-9), 1),
    }
