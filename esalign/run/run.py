"""One run: search, validate the mean, keep the best, checkpoint every generation, and report on unseen problems."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from esalign.config.run import RunConfig
from esalign.config.sections import Experiment
from esalign.errors import CheckpointError
from esalign.files import JsonLines
from esalign.loop import Generation, search
from esalign.protocols import Backend, Fitness, Optimizer, Space
from esalign.rewards.pool import RewardPool
from esalign.run.checkpoint import Checkpoints
from esalign.run.evaluate import HeldOutResult, evaluate, kl_to_start
from esalign.run.statistics import Estimate, estimate, paired_difference
from esalign.run.trackers import Tracker
from esalign.seeds import derive_seed
from esalign.types import Array, Example, Sample, Sampling, State

STATE_VERSION = 1
VALIDATION, TEST, PROBE, KL = range(4)  # which held-out answers a decoding seed is for


@dataclass(frozen=True)
class HeldOut:
    """Problems that are never searched on, with the rewards that judge them."""

    examples: Sequence[Example]
    pool: RewardPool


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    space: Space
    backend: Backend
    optimizer: Optimizer
    fitness: Fitness
    validation: HeldOut
    test: HeldOut
    probe: HeldOut | None = None
    tracker: Tracker | None = None


class Reporter(Protocol):
    """Who tells the user how a run goes."""

    def start(self, config: Experiment, folder: Path, done: int) -> None:
        """Say that a run begins, or goes on after so many generations."""

    def stage(self, text: str) -> None:
        """Say what goes on now, outside the search."""

    def generation(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a finished generation, or of the start (generation 0)."""

    def warn(self, text: str) -> None:
        """Say what the user should know."""


@dataclass
class Progress:
    """What a run knows beside its plugs; all of it goes into the checkpoint."""

    done: int = 0
    best_score: float = float("-inf")
    best_generation: int = 0
    best_vector: Array = field(default_factory=lambda: np.zeros(0))
    stale: int = 0
    flat: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    scored_tokens: int = 0
    held_out_tokens: int = 0
    search_seconds: float = 0.0
    held_out_seconds: float = 0.0
    start_scores: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The start and the result on the same held-out problems."""

    start: Estimate
    result: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        reason: why the search stopped.
        generation: the generation whose mean is the result; 0 is the start itself.
        vector: that mean, shape (dim,).
        comparisons: by held-out set, e.g. ``test/greedy``.
        samples: what the result answers to a few test problems.
        kl: KL to the start, nats per token; None when it was left out.
        totals: tokens, seconds and memory.
    """

    reason: str
    generation: int
    vector: Array
    comparisons: Mapping[str, Comparison]
    samples: tuple[Sample, ...]
    kl: float | None
    totals: Mapping[str, float]


class Run:
    """A run in its folder.

    Args:
        config: what to do.
        folder: the run's directory.
        parts: the plugs and the held-out problems.
        reporter: who tells the user.
        interrupts: when something appears in it, the run stops after the generation that is under way.

    Raises:
        CheckpointError: the folder holds a checkpoint of another run.
    """

    def __init__(
        self, config: RunConfig, folder: Path, parts: Parts, reporter: Reporter, interrupts: Sequence[int] = ()
    ) -> None:
        self._config, self._parts, self._reporter, self._interrupts = config, parts, reporter, interrupts
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._progress = Progress(best_vector=np.zeros(parts.space.dim))
        state = self._checkpoints.load_last()
        if state is not None:
            self._load(state)
        for file in (self._metrics, self._samples):
            file.keep_until(self._progress.done if state is not None else -1)
        reporter.start(config, folder, self._progress.done)

    def execute(self) -> Result | None:
        """Search until a reason to stop, then report on the test problems. None when the run was interrupted."""
        progress = self._progress
        if not progress.start_scores:
            self._judge_start()
        reason = self._reason_to_stop()
        steps = search(
            self._parts.optimizer,
            self._parts.fitness,
            generations=self._config.run.generations,
            done=progress.done,
        )
        while reason is None:
            began = time.perf_counter()
            generation = next(steps)
            self._account(generation, time.perf_counter() - began)
            self._record(generation)
            reason = self._reason_to_stop()
        if reason == "interrupted":
            return None
        return self._judge_result(reason)

    def _account(self, generation: Generation, seconds: float) -> None:
        progress, evaluation = self._progress, generation.evaluation
        progress.done = generation.number
        progress.search_seconds += seconds
        progress.generated_tokens += evaluation.generated_tokens
        progress.prompt_tokens += evaluation.prompt_tokens
        progress.scored_tokens += evaluation.scored_tokens
        progress.flat = progress.flat + 1 if np.ptp(evaluation.fitness) == 0 else 0

    def _record(self, generation: Generation) -> None:
        """Validate when it is time, then write metrics, samples and the checkpoint, in this order.

        A kill between them leaves lines that the resumed run drops, as their generation is not checkpointed.
        """
        number, evaluation = generation.number, generation.evaluation
        row: dict[str, Any] = {
            "generation": number,
            "fitness": _spread(evaluation.fitness),
            "sigma": self._parts.optimizer.sigma,
            "mean_norm": float(np.linalg.norm(self._parts.optimizer.mean)),
            **evaluation.metrics,
        }
        if number % self._config.run.evaluate_every == 0 or self._limit_reached():
            row["validation"] = self._validate(number)
        row |= self._totals()
        self._metrics.append(row)
        self._append_samples(number, evaluation.samples)
        self._checkpoints.save(self._state(), number)
        self._reporter.generation(row)
        self._warn_when_flat(evaluation.samples)
        if self._parts.tracker is not None:
            self._parts.tracker.log(flatten(row), number)

    def _validate(self, number: int) -> dict[str, float]:
        """Judge the mean on the validation problems; a new best is kept."""
        progress, mean = self._progress, self._parts.optimizer.mean
        result = self._evaluate(mean, self._parts.validation, VALIDATION, self._config.sampling.temperature)
        if result.estimate.mean > progress.best_score:
            progress.best_score, progress.best_generation = result.estimate.mean, number
            progress.best_vector, progress.stale = mean, 0
        else:
            progress.stale += 1
        return interval(result.estimate)

    def _judge_start(self) -> None:
        """Judge the adapter that the search starts from, on every held-out set."""
        progress = self._progress
        self._reporter.stage("judging the start on held-out problems")
        start = np.zeros(self._parts.space.dim)
        validation = self._evaluate(start, self._parts.validation, VALIDATION, self._config.sampling.temperature)
        progress.best_score = validation.estimate.mean
        results = self._held_out_results(start)
        progress.start_scores = {name: result.scores for name, result in results.items()}
        row: dict[str, Any] = {
            "generation": 0,
            "validation": interval(validation.estimate),
            **{name: interval(result.estimate) for name, result in results.items()},
            **self._totals(),
        }
        self._metrics.append(row)
        self._append_samples(0, validation.samples)
        self._checkpoints.save(self._state(), 0)
        self._reporter.generation(row)

    def _judge_result(self, reason: str) -> Result:
        """Judge the best mean on the problems that nothing was chosen by."""
        progress = self._progress
        self._reporter.stage("judging the result on held-out problems")
        results = self._held_out_results(progress.best_vector)
        comparisons = {
            name: Comparison(
                start=estimate(progress.start_scores[name]),
                result=result.estimate,
                gain=paired_difference(result.scores, progress.start_scores[name]),
            )
            for name, result in results.items()
        }
        return Result(
            reason=reason,
            generation=progress.best_generation,
            vector=progress.best_vector.copy(),
            comparisons=comparisons,
            samples=next(iter(results.values())).samples,
            kl=self._kl(progress.best_vector),
            totals=self._totals(),
        )

    def _held_out_results(self, vector: Array) -> dict[str, HeldOutResult]:
        """Answer the test problems greedily and sampled, and the off-task probe, the run's own decoding first."""
        searched = self._config.sampling.temperature
        decodings = {"test/greedy": 0.0, "test/sampled": searched or 1.0}
        names = sorted(decodings, key=lambda name: decodings[name] != searched)
        results = {name: self._evaluate(vector, self._parts.test, TEST, decodings[name]) for name in names}
        if self._parts.probe is not None:
            results["probe"] = self._evaluate(vector, self._parts.probe, PROBE, 0.0)
        return results

    def _evaluate(self, vector: Array, held_out: HeldOut, use: int, temperature: float) -> HeldOutResult:
        began = time.perf_counter()
        sampling = self._sampling(use, temperature)
        result = evaluate(self._parts.backend, held_out.pool, vector, held_out.examples, sampling)
        self._progress.held_out_seconds += time.perf_counter() - began
        self._progress.held_out_tokens += result.generated_tokens
        return result

    def _kl(self, vector: Array) -> float | None:
        count = self._config.run.kl_prompts
        if not count:
            return None
        examples = self._parts.validation.examples[:count]
        return kl_to_start(self._parts.backend, vector, examples, self._sampling(KL, 1.0))

    def _sampling(self, use: int, temperature: float) -> Sampling:
        section = self._config.sampling.model_copy(update={"temperature": temperature})
        if use == KL:  # the estimator needs the model's own distribution
            section = section.model_copy(update={"top_p": 1.0, "top_k": 0})
        return section.make(seed=derive_seed(self._config.run.seed, use, 1))

    def _reason_to_stop(self) -> str | None:
        progress, limits = self._progress, self._config.run
        if reached := self._limit_reached():
            return reached
        if self._interrupts:
            return "interrupted"
        if limits.patience is not None and progress.stale >= limits.patience:
            return f"no better validation in {progress.stale} validations"
        if progress.flat >= limits.flat_limit:
            return f"all candidates had the same fitness for {progress.flat} generations"
        return None

    def _limit_reached(self) -> str | None:
        """Say which limit that the user set is reached; the mean is always validated then."""
        progress, limits = self._progress, self._config.run
        if progress.done >= limits.generations:
            return f"all {limits.generations} generations done"
        if limits.max_minutes is not None and progress.search_seconds >= 60 * limits.max_minutes:
            return f"{limits.max_minutes:g} minutes of search are over"
        return None

    def _warn_when_flat(self, samples: Sequence[Sample]) -> None:
        if self._progress.flat != 1:
            return
        shown = "; ".join(f"{sample.completion[:60]!r} -> {sample.reward}" for sample in samples)
        self._reporter.warn(
            "all candidates have the same fitness, so nothing can be learned: is the reward always the same, or sigma "
            f"too small? Answers of this generation: {shown}"
        )

    def _append_samples(self, generation: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._samples.append({"generation": generation, **sample.row()})

    def _totals(self) -> dict[str, Any]:
        return totals(self._progress, scored=self._progress.scored_tokens)

    def _state(self) -> State:
        return {
            "version": STATE_VERSION,
            "space": self._parts.space.fingerprint,
            "optimizer": self._parts.optimizer.state_dict(),
            "fitness": self._parts.fitness.state_dict(),
            "progress": dict(vars(self._progress)),
        }

    def _load(self, state: State) -> None:
        if state.get("version") != STATE_VERSION or state.get("space") != self._parts.space.fingerprint:
            raise CheckpointError(
                "the checkpoint is of another adapter, fraction or version of esalign: start a new run (run.name=...)"
            )
        self._parts.optimizer.load_state_dict(state["optimizer"])
        self._parts.fitness.load_state_dict(state["fitness"])
        self._progress = Progress(**state["progress"])


class Spent(Protocol):
    """What any run counts of tokens and seconds."""

    generated_tokens: int
    prompt_tokens: int
    held_out_tokens: int
    search_seconds: float
    held_out_seconds: float


def totals(spent: Spent, *, scored: int) -> dict[str, Any]:
    """Return tokens so far, and apart under ``machine`` what depends on the machine and is not reproducible."""
    return {
        "tokens": {
            "generated": spent.generated_tokens,
            "prompt": spent.prompt_tokens,
            "scored": scored,
            "held_out": spent.held_out_tokens,
        },
        "machine": {
            "search_seconds": round(spent.search_seconds, 3),
            "held_out_seconds": round(spent.held_out_seconds, 3),
            "tokens_per_second": round(spent.generated_tokens / max(spent.search_seconds, 1e-9), 1),
            **peak_memory(),
        },
    }


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process so far, in MiB: resident, and on the GPU where there is one."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    peak = {"peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def _spread(values: Array) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "max": float(values.max()),
        "min": float(values.min()),
        "std": float(values.std()),
    }


def interval(value: Estimate) -> dict[str, float]:
    """Return an estimate as a metrics row holds it."""
    return {"mean": value.mean, "low": value.low, "high": value.high, "count": value.count}


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return {'fitness/mean': 0.5, ...}, as trackers want it."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = float(value)
    return flat
