"""What `esalign run` and `esalign eval` do, as functions: from a configuration to a result in a folder."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from esalign.assets import model_path
from esalign.commands.build import load_splits, make_parts, resolve
from esalign.config.run import RunConfig
from esalign.report.card import write_model_card
from esalign.report.page import write_report
from esalign.report.words import concerns
from esalign.rewards import doubts
from esalign.run.folder import ADAPTER, Outcome, alone_in, choose_folder, prepare_folder, write_result
from esalign.run.run import Parts, Reporter, Result, Run
from esalign.run.verify import Verification, save_adapter, verify_adapter
from esalign.types import Completion, Sample

TRIED_ANSWERS = 16  # right answers that a dry run shows to the rewards


def align(config: RunConfig, *, reporter: Reporter, resume: bool = False, interrupts: Sequence[int] = ()) -> Outcome:
    """Search, then write adapter, model card, result and report into the run's folder.

    Args:
        config: what to do.
        reporter: who tells the user.
        resume: go on with the newest run of the configuration's name.
        interrupts: when something appears in it, the run stops after the generation that is under way.
    """
    config = resolve(config)
    folder = choose_folder(config, resume=resume)
    reporter.stage("loading data, rewards and engine")
    with ExitStack() as closing:
        parts = make_parts(config, folder, closing)
        closing.enter_context(alone_in(folder))
        prepare_folder(folder, config, resume=resume)
        result = Run(config, folder, parts, reporter, interrupts).execute()
        if result is None:
            return Outcome(folder)
        adapter = save_adapter(parts.space, result.vector, folder / ADAPTER)
        prompts, completions = _answers_to_verify(config, parts, result)
    reporter.stage("loading the saved adapter with transformers and peft, and comparing its answers")
    verification = _verify(config, adapter, prompts, completions)
    if not verification.good:
        reporter.warn(verification.note)
    write_model_card(adapter, config, result, verification)
    write_result(folder, result, verification)
    write_report(folder)
    return Outcome(folder, result, verification)


@dataclass(frozen=True)
class Plan:
    """What a run would do, from one real batch.

    Args:
        config: the configuration, defaults of the plugs filled in.
        dim: length of the search vector.
        problems: number of training, validation and test problems.
        answers: answers to generate in all generations.
        tokens: generated tokens in all, from the mean length of the batch.
        seconds: search time in all, from the batch's speed.
        columns: role -> the data's column that was taken for it without being told so.
        concerns: what should worry the user.
        samples: answers of the start with their rewards.
    """

    config: RunConfig
    dim: int
    problems: tuple[int, int, int]
    answers: int
    tokens: int
    seconds: float
    columns: Mapping[str, str]
    concerns: tuple[str, ...]
    samples: tuple[Sample, ...]


def plan(config: RunConfig) -> Plan:
    """Load everything, let the start answer one batch, and reckon what the whole run would take."""
    config = resolve(config)
    with ExitStack() as closing:
        parts = make_parts(config, Path(config.run.dir), closing)
        splits = load_splits(config)
        parts.fitness.prepare(parts.optimizer.mean, 0)
        began = time.perf_counter()
        candidates = parts.optimizer.ask()
        evaluation = parts.fitness.evaluate(candidates)
        seconds = time.perf_counter() - began
        generations = config.run.generations
        row = {**evaluation.metrics, "fitness": {"std": float(np.std(evaluation.fitness))}}
        return Plan(
            config=config,
            dim=parts.space.dim,
            problems=(len(splits.train.examples), len(splits.validation.examples), len(splits.test.examples)),
            answers=generations * len(candidates) * (config.fitness.prompts or 1) * (config.fitness.samples or 1),
            tokens=generations * evaluation.generated_tokens,
            seconds=generations * seconds,
            columns=splits.train.aliases,
            concerns=(
                *doubts(parts.validation.pool, parts.validation.examples[:TRIED_ANSWERS]),
                *concerns(row, max_tokens=config.sampling.max_tokens).values(),
            ),
            samples=evaluation.samples,
        )


def _answers_to_verify(
    config: RunConfig, parts: Parts, result: Result
) -> tuple[list[tuple[int, ...]], Sequence[Completion]]:
    """Return prompts as token ids, and the engine's greedy answers to them with the result."""
    examples = parts.validation.examples[: config.run.verify_prompts]
    sampling = replace(config.sampling.make(seed=0), temperature=0.0)
    rows = parts.backend.generate(result.vector[None], [example.prompt for example in examples], sampling)
    return [parts.backend.encode(example.prompt) for example in examples], rows[0]


def _verify(
    config: RunConfig, adapter: Path, prompts: list[tuple[int, ...]], completions: Sequence[Completion]
) -> Verification:
    exact = config.backend.dtype == "float32" and not config.backend.options.get("quantization")
    return verify_adapter(
        model_path(config.model.path),
        adapter,
        prompts,
        completions,
        max_tokens=config.sampling.max_tokens,
        dtype=config.backend.dtype,
        exact=exact,
    )
