"""From a configuration to the objects it names."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from esalign.config import (
    EMBEDDED,
    BackendSection,
    Experiment,
    ModelSection,
    ProbeSection,
    RewardSection,
    RunConfig,
    ScoringSection,
    SourceSection,
)
from esalign.data import MiniBatches, Source, Splits, load_dataset, make_splits
from esalign.errors import ConfigError
from esalign.fitness import RewardFitness
from esalign.metrics import make_tracker
from esalign.plugins import BACKENDS, check_options, find, merge
from esalign.protocols import Backend, Fitness
from esalign.registry import load_backend, make_optimizer
from esalign.rewards import load_reward
from esalign.rewards.pool import RewardPool
from esalign.run import HeldOut, Parts
from esalign.space import SvdLora
from esalign.surrogate import SurrogateFitness

FITNESSES: dict[str, Callable[..., Fitness]] = {"reward": RewardFitness, "surrogate": SurrogateFitness}
DISTILLATION = "distillation"
GGUF = ".gguf"
POSITIONAL = ("backend", "batches", "pool", "sampling")


def asset(name: str) -> Path:
    """Return the path of a file or folder that is shipped with esalign."""
    return Path(str(files("esalign"))) / "assets" / name


def model_path(path: str) -> str:
    """Return where a model lies, 'embedded' being the one that is shipped."""
    return str(asset("embedded/model")) if path == EMBEDDED else path


def adapter_path(path: str) -> str:
    """Return where an adapter lies, 'embedded' being the one that is shipped."""
    return str(asset("embedded/adapter")) if path == EMBEDDED else path


def make_space(section: ModelSection) -> SvdLora:
    """Return the search space. A LoRA in a GGUF file is read for the GGUF model that it goes with."""
    if section.adapter.endswith(GGUF):
        read = find(BACKENDS, "llama-cpp").read_gguf_adapter
        return SvdLora(read(section.adapter, section.path), fraction=section.fraction)
    return SvdLora.from_pretrained(adapter_path(section.adapter), fraction=section.fraction)


def make_backend(section: BackendSection, model: str, space: SvdLora | None) -> Backend:
    """Start the engine."""
    return load_backend(
        section.name,
        model=model_path(model),
        space=space,
        dtype=section.dtype,
        device=section.device,
        **section.options,
    )


def make_source(section: SourceSection) -> Source:
    """Return the source of problems that a section describes."""
    return Source(**{name: getattr(section, name) for name in SourceSection.model_fields})


def load_splits(config: Experiment) -> Splits:
    """Load training, validation and test problems."""
    data = config.data
    return make_splits(
        make_source(data),
        train_size=data.train_size,
        validation_size=data.validation_size,
        test_size=data.test_size,
        validation=make_source(data.validation) if data.validation else None,
        test=make_source(data.test) if data.test else None,
        seed=config.run.seed,
    )


def make_pool(rewards: Sequence[RewardSection], scoring: ScoringSection) -> RewardPool:
    """Start the processes that score."""
    return RewardPool(
        [(load_reward(reward.name, **reward.options), reward.weight) for reward in rewards],
        workers=scoring.workers,
        timeout=scoring.timeout,
    )


def make_parts(config: RunConfig, folder: Path, closing: ExitStack) -> Parts:
    """Make everything that a run needs; what must be closed is handed to ``closing``. Cheap checks come first."""
    space = make_space(config.model)
    section = config.optimizer
    settings = {"dim": space.dim, "sigma": section.sigma, "population": section.population, "seed": config.run.seed}
    optimizer = make_optimizer(section.name, **merge(f"optimizer {section.name!r}", settings, section.options))
    splits = load_splits(config)
    pool = closing.enter_context(make_pool(config.rewards, config.scoring))
    backend = make_backend(config.backend, config.model.path, space)
    closing.callback(backend.close)
    tracker = make_tracker(
        config.run.tracker, name=config.run.name, folder=folder, config=config.model_dump(mode="json")
    )
    if tracker is not None:
        closing.callback(tracker.finish)
    return Parts(
        space=space,
        backend=backend,
        optimizer=optimizer,
        fitness=_make_fitness(config, backend, space, splits, pool),
        validation=HeldOut(splits.validation.examples, pool),
        test=HeldOut(splits.test.examples, pool),
        probe=make_probe(config.probe, config, closing),
        tracker=tracker,
    )


def _make_fitness(config: RunConfig, backend: Backend, space: SvdLora, splits: Splits, pool: RewardPool) -> Fitness:
    section = config.fitness
    seed = config.run.seed
    settings: dict[str, Any] = {"prompts": section.prompts, "samples": section.samples, "seed": seed}
    batches = MiniBatches(splits.train.examples, seed=seed)
    if section.name == DISTILLATION:
        # It stands above this module on the map of the code, as it needs models and not only an engine.
        factory = import_module("esalign.distill.fitness").make_fitness
        settings |= {"model": config.model.path, "space": space}
        steps = section.options.get("steps")
        if isinstance(steps, int) and steps > config.run.generations:
            raise ConfigError(
                f"fitness.options.steps is {steps}, but the run has only {config.run.generations} generations, so the "
                "teacher's help would never end: shorten it, lengthen the run, or leave it out to keep the budget"
            )
    elif section.name in FITNESSES:
        factory = FITNESSES[section.name]
    else:
        known = ", ".join([*FITNESSES, DISTILLATION])
        raise ConfigError(f"fitness.name is {section.name!r}, expected one of {known}")
    check_options(f"fitness {section.name!r}", factory, section.options, reserved=(*settings, *POSITIONAL))
    fitness: Fitness = factory(backend, batches, pool, config.sampling.make(seed=seed), **settings, **section.options)
    return fitness


def make_probe(section: ProbeSection | None, config: Experiment, closing: ExitStack) -> HeldOut | None:
    """Load the off-task probe and start the processes that score it, or return None when there is none."""
    if section is None:
        return None
    examples = load_dataset(make_source(section), size=section.size, seed=config.run.seed).examples
    return HeldOut(examples, closing.enter_context(make_pool(section.rewards, config.scoring)))
