"""What `esalign eval` does."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from esalign.assets import model_path
from esalign.commands.build import keep_prompts, load_splits, make_backend, make_pool
from esalign.commands.hub import find_hub
from esalign.config.run import RunConfig
from esalign.data import Dataset
from esalign.engines.cluster.make import check_engines
from esalign.engines.cluster.ray_workers import joined
from esalign.errors import ConfigError
from esalign.fitness.completions import Completed, complete
from esalign.registry import did_you_mean
from esalign.rewards import RewardPool
from esalign.run.eval_log import write_log
from esalign.run.instructions import Instructions, judge_instructions
from esalign.run.judged import Judged
from esalign.run.self_test import self_test
from esalign.space import SvdLora
from esalign.space.svd_lora import read_any_adapter
from esalign.types import Example

START = "start"
Progress = Callable[[str, int, int], None]
"""Called with what is judged, the completions that are finished, and how many there will be."""


def judge(
    config: RunConfig,
    *,
    start: str | None,
    adapters: Sequence[str] = (),
    split: str = "test",
    samples: int = 1,
    by: Sequence[str] = (),
    output: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[Judged]:
    """Judge models on the problems of a split: the start first, then the adapters, each with an engine of its own.

    Args:
        config: model, engine, problems, rewards and sampling.
        start: adapter of the first model; None for the base model.
        adapters: further adapters.
        split: ``train``, ``validation`` or ``test``.
        samples: completions of each problem.
        by: columns that the problems must have.
        output: file for all completions, which must not exist; see `write_log`.
        progress: who waits.

    Raises:
        ConfigError: no such split or column, several samples with greedy decoding, or the file exists.
        AdapterError: an adapter cannot be read.
    """
    _check(config, samples, output)
    check_engines(config.backend, config.cluster)
    find_hub(config)
    models = [(START, start), *((adapter, adapter) for adapter in adapters)]
    spaces = [None if adapter is None else open_adapter(config.model.path, adapter) for _, adapter in models]
    splits = load_splits(config)
    datasets = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if split not in datasets:
        raise ConfigError(f"no split {split!r}, expected one of {', '.join(datasets)}")
    _check_columns(by, datasets[split].examples)
    judged: list[Judged] = []
    with ExitStack() as closing:
        closing.enter_context(joined(config.cluster, *spaces))
        pool = closing.enter_context(make_pool(config.rewards, config.scoring, config.cluster))
        for (name, adapter), space in zip(models, spaces, strict=True):
            found = _judge_one(config, pool, space, datasets[split], name=name, samples=samples, progress=progress)
            if adapter is not None and space is None:
                found = replace(found, note=f"adapter '{adapter}' changes nothing, as it is zero: the base model")
            judged.append(found)
            if output is not None:
                write_log(output, judged, split=split, sampling=config.sampling.make(seed=config.run.seed))
    return judged


def open_adapter(model: str, adapter: str) -> SvdLora | None:
    """Return the space around an adapter, its layers that change nothing left out; None where no layer changes any."""
    found = read_any_adapter(adapter, model_path(model))
    modules = tuple(module for module in found.modules if module.A.any() and module.B.any())
    return SvdLora(replace(found, modules=modules)) if modules else None


def _check(config: RunConfig, samples: int, output: Path | None) -> None:
    if samples > 1 and config.sampling.temperature == 0:
        raise ConfigError(
            f"--samples is {samples} with greedy decoding, where all samples are equal: set sampling.temperature above "
            "0, say sampling.temperature=0.8, or leave --samples out"
        )
    check_output(output)


def check_output(output: Path | None) -> None:
    """Refuse a file for results that exists, or whose folder does not."""
    if output is not None and output.exists():
        raise ConfigError(f"'{output}' exists: name another file for --output")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"there is no folder '{output.parent}' to write '{output.name}' to")


def _check_columns(by: Sequence[str], examples: Sequence[Example]) -> None:
    known = list(dict.fromkeys(name for example in examples for name in example.columns))
    for name in by:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"--by {name}: the problems have no such column{hint}; columns: {', '.join(known)}")


def _judge_one(
    config: RunConfig,
    pool: RewardPool,
    space: SvdLora | None,
    data: Dataset,
    *,
    name: str,
    samples: int,
    progress: Progress,
) -> Judged:
    """Judge one model with an engine that lives as long as this takes."""
    began = time.monotonic()
    progress(f"loading {name}", 0, 0)
    backend = make_backend(config.backend, config.model.path, space, cluster=config.cluster)
    try:
        start, examples = np.zeros(space.dim if space else 0), keep_prompts(config, backend)(data).examples
        self_test(backend, config.backend, model=config.model.path, space=space, candidate=start, examples=examples)
        loaded = time.monotonic()
        repeated = [example for example in examples for _ in range(samples)]
        finished = itertools.count(1)
        completed = complete(
            backend,
            pool,
            start[None],
            repeated,
            config.sampling.make(seed=config.run.seed),
            on_completion=lambda: progress(name, next(finished), len(repeated)),
        )
        ended = time.monotonic()
    finally:
        backend.close()
    rewards = {reward.name for reward in config.rewards}
    return Judged(
        name,
        examples,
        completed,
        maths="math" in rewards,
        seconds=ended - loaded,
        load_seconds=loaded - began,
        instructions=_follow(examples, completed, samples) if "ifeval" in rewards else None,
    )


def _follow(examples: Sequence[Example], completed: Completed, samples: int) -> Instructions:
    """Judge each instruction by itself, in the text that the reward was given."""
    texts = [begun + one.text for begun, one in zip(completed.begun, completed.rows[0], strict=True)]
    return judge_instructions(examples, [texts[at : at + samples] for at in range(0, len(texts), samples)])
