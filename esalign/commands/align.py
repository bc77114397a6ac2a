"""What `esalign run` does: from a configuration to a result in a folder; and its dry run."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from esalign import registry
from esalign.assets import model_path
from esalign.commands.build import SearchParts, make_parts, resolve
from esalign.commands.drive import drive, finish, settle
from esalign.commands.hub import find_hub
from esalign.config.run import RunConfig
from esalign.errors import EsalignError
from esalign.loop import search
from esalign.protocols import Backend
from esalign.report.card import CardFacts
from esalign.report.words import SEARCH, concerns, concerns_of_step
from esalign.rewards import audit
from esalign.run.first_step import try_first_step
from esalign.run.folder import ADAPTER, Outcome, alone_in, choose_folder, noting_resume
from esalign.run.learner import order_measures
from esalign.run.plan import Plan
from esalign.run.reporter import Reporter
from esalign.run.statistics import resolution
from esalign.run.verify import Verification, save_adapter, verify_adapter
from esalign.types import Example, Message


def align(config: RunConfig, *, reporter: Reporter, resume: bool = False, interrupts: Sequence[int] = ()) -> Outcome:
    """Search, then write adapter, model card, result and report into the run's folder.

    Args:
        config: what to do.
        reporter: who tells the user.
        resume: go on with the newest run of the configuration's name.
        interrupts: when something appears in it, the run stops after the generation that is under way, or, while the
            result is judged, after the problems that are.
    """
    find_hub(config)
    config = resolve(config)
    folder = choose_folder(config, resume=resume)
    reporter.stage("loading data, rewards and engine")
    with noting_resume(folder), ExitStack() as alone, ExitStack() as closing:
        parts = make_parts(config, closing)
        alone.enter_context(alone_in(folder))
        config, learner = settle(config, parts.learner), parts.learner
        if not resume:
            for concern in audit(parts.held_out.validation.pool, parts.held_out.validation.examples):
                reporter.warn(concern)
        result = drive(
            config,
            folder,
            learner,
            parts.splits,
            parts.held_out,
            kind="search",
            resume=resume,
            reporter=reporter,
            interrupts=interrupts,
            closing=closing,
            flat_limit=config.run.flat_limit,
            kl_prompts=config.run.kl_prompts,
            keep_sampled=config.run.keep_sampled,
        )
        if result is None:
            return Outcome(folder)
        adapter = save_adapter(learner.space, learner.vector, folder / ADAPTER)
        check = partial(_check, config, parts, adapter, closing)
        name, facts = config.run.name, _facts(config)
        return finish(folder, adapter, result, check, name=name, facts=facts, reporter=reporter)


def plan(config: RunConfig) -> Plan:
    """Load everything, judge the start, let the first population do one batch, and estimate what a run would take."""
    find_hub(config)
    config = resolve(config)
    with ExitStack() as closing:
        parts = make_parts(config, closing)
        learner, splits, validation = parts.learner, parts.splits, parts.held_out.validation
        measure = order_measures(learner.measures, config.run.select_by)[0]
        start = learner.judge(measure, validation, config.sampling.make(seed=config.run.seed))
        step, proposed = try_first_step(
            learner.backend,
            learner.space.dim,
            [example.prompt for example in validation.examples],
            config.sampling.make(seed=config.run.seed),
            sigma=learner.optimizer.sigma,
            seed=config.run.seed,
        )
        began = time.perf_counter()
        [generation] = search(learner.optimizer, learner.selection, generations=1)
        seconds = time.perf_counter() - began
        evaluation = generation.evaluation
        row = {**evaluation.metrics, "fitness": {"std": float(np.std(evaluation.fitness))}}
        generations = config.run.generations
        return Plan(
            config=config,
            dim=learner.space.dim,
            problems=(len(splits.train.examples), len(splits.validation.examples), len(splits.test.examples)),
            resolution=resolution(start.scores),
            tokens=generations * evaluation.generated_tokens,
            seconds=generations * seconds,
            columns=splits.train.aliases,
            notes=splits.notes,
            concerns=(
                *audit(validation.pool, validation.examples),
                *concerns(row, max_tokens=config.sampling.max_tokens).values(),
                *concerns_of_step(step, proposed),
                *_concern_of_plain_text(learner.backend, validation.examples),
            ),
            step=step,
            reliability=evaluation.metrics.get("reliability"),
            samples=evaluation.samples,
        )


def _check(config: RunConfig, parts: SearchParts, adapter: Path, closing: ExitStack) -> Verification:
    """Compare the engine's greedy completions with those of the saved adapter elsewhere, and close the engine."""
    if form := registry.find_format(config.model.path):
        closing.close()  # the check needs the memory
        beside = adapter.with_suffix(Path(config.model.path).suffix)
        try:
            note = form.export_adapter(adapter, config.model.path, beside)
        except EsalignError as error:
            return Verification(False, None, 0, f"the adapter was not written as '{beside.name}': {error}")
        return Verification(True, None, 0, note)
    learner, few = parts.learner, parts.held_out.validation.examples[: config.run.verify_prompts]
    sampling = replace(config.sampling.make(seed=0), temperature=0.0)
    [completions] = learner.backend.generate(learner.vector[None], [example.prompt for example in few], sampling)
    prompts = [learner.backend.encode(example.prompt) for example in few]
    closing.close()
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


def _concern_of_plain_text(backend: Backend, examples: Sequence[Example]) -> tuple[str, ...]:
    """Say so when a model that has a chat template is given plain text."""
    if not all(isinstance(example.prompt, str) for example in examples):
        return ()
    message: Message = {"role": "user", "content": "."}
    try:
        backend.encode((message,))
    except EsalignError:  # no template
        return ()
    advice = "data.chat=true makes chats of them, as a model that is tuned to chat wants"
    return (f"prompts are plain text, which the model continues, though it has a chat template: {advice}",)


def _facts(config: RunConfig) -> CardFacts:
    rewards = ", ".join(f"{reward.name} (weight {reward.weight:g})" for reward in config.rewards)
    start = config.model.adapter
    searched = (
        f"the\nsingular values of the adapter `{start}`" if start else "the singular directions of the model's weights"
    )
    return CardFacts(
        base_model=config.model.path,
        library="peft",
        tags=("lora", "esalign", "evolution-strategies"),
        summary="A LoRA adapter aligned without gradients by esalign: an evolution strategy\nsearched over "
        f"{searched} (ESSA, arXiv 2507.04453).",
        settings=(
            f"Data: `{config.data.source}`. Rewards: {rewards}.",
            f"{config.describe()}; fitness {config.fitness.name}.",
            f"First sigma {config.optimizer.sigma:g}, seed {config.run.seed}.",
        ),
        words=SEARCH,
    )
