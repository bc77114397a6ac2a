"""From a configuration to the objects it names."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from esalign.assets import model_path
from esalign.config import Experiment
from esalign.config.cluster import ClusterSection
from esalign.config.run import RunConfig
from esalign.config.sections import BackendSection, ProbeSection, RewardSection, ScoringSection
from esalign.data import Dataset, MiniBatches, Splits, load_dataset, make_splits
from esalign.data.lengths import keep_fitting
from esalign.data.notes import Note
from esalign.engines.cluster.backend import ClusterBackend
from esalign.engines.cluster.make import check_engines, make_cluster
from esalign.engines.cluster.ray_workers import joined
from esalign.engines.cluster.scoring import start_on_cluster
from esalign.errors import BackendError
from esalign.fitness import FitnessParts
from esalign.fitness.budget import WithinBudget
from esalign.protocols import Backend, BoundedBackend, Fitness, Space
from esalign.registry import DEFAULT_SIGMA, FITNESS, SPACES, find, load_backend, make_fitness, make_optimizer, merge
from esalign.rewards import load_reward
from esalign.rewards.pool import RewardPool
from esalign.run.evaluate import HeldOut
from esalign.run.evolution import Evolution
from esalign.run.learner import HeldOutSets
from esalign.run.self_test import self_test
from esalign.space import make_space


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with what it leaves open filled in: by its model, its space and its fitness."""
    space = config.space.name or ("base-svd" if config.model.adapter is None else "svd-lora")
    sigma = config.optimizer.sigma or getattr(find(SPACES, space), "sigma", DEFAULT_SIGMA)
    fitness = config.fitness
    defaults = inspect.signature(find(FITNESS, fitness.name)).parameters
    missing = {
        name: defaults[name].default
        for name in ("prompts", "samples")
        if getattr(fitness, name) is None and name in defaults and defaults[name].default is not inspect.Parameter.empty
    }
    return config.model_copy(
        update={
            "space": config.space.model_copy(update={"name": space}),
            "optimizer": config.optimizer.model_copy(update={"sigma": sigma}),
            "fitness": fitness.model_copy(update=missing),
        }
    )


def make_backend(
    section: BackendSection, model: str, space: Space | None, *, cluster: ClusterSection | None = None
) -> Backend:
    """Start the engine, or many of them."""
    if cluster is not None:
        return make_cluster(section, model_path(model), space, cluster)
    settings = {"model": model_path(model), "space": space, "dtype": section.dtype, "device": section.device}
    return load_backend(section.name, **merge(f"backend {section.name!r}", settings, section.options))


def load_splits(config: Experiment) -> Splits:
    """Load training, validation and test problems."""
    data = config.data
    return make_splits(
        data,
        train_size=data.train_size,
        validation_size=data.validation_size,
        test_size=data.test_size,
        validation=data.validation,
        test=data.test,
        overlap=data.overlap,
        seed=config.run.seed,
    )


def make_pool(
    rewards: Sequence[RewardSection], scoring: ScoringSection, cluster: ClusterSection | None = None
) -> RewardPool:
    """Start the processes that score, where the configuration wants them."""
    settings: dict[str, Any] = {"workers": scoring.workers, "timeout": scoring.timeout}
    elsewhere = None
    if scoring.place == "cluster" and cluster is not None:
        elsewhere = partial(start_on_cluster, section=cluster, **settings)
    return RewardPool(
        [(load_reward(reward.name, **reward.options), reward.weight) for reward in rewards],
        elsewhere=elsewhere,
        **settings,
    )


def make_held_out(
    config: Experiment, splits: Splits, closing: ExitStack, cluster: ClusterSection | None = None
) -> HeldOutSets:
    """Return the held-out problems, and start the processes that score them."""
    pool = closing.enter_context(make_pool(config.rewards, config.scoring, cluster))
    return HeldOutSets(
        validation=HeldOut(splits.validation.examples, pool),
        test=HeldOut(splits.test.examples, pool),
        probe=make_probe(config.probe, config, closing, cluster),
    )


def keep_prompts(config: Experiment, backend: Backend) -> Callable[[Dataset], Dataset]:
    """Return what finds the prompts that the engine cannot complete, and refuses or drops them; see `keep_fitting`."""
    context, tokens = backend.context if isinstance(backend, BoundedBackend) else None, config.sampling.max_tokens
    keep = partial(
        keep_fitting,
        encode=backend.encode,
        most=None if context is None else context - tokens,
        reason=f"a context of {context} less sampling.max_tokens {tokens}; the backend's options may raise the context",
        too_long=config.data.too_long,
    )
    return partial(_keep_of_cluster, backend, keep) if isinstance(backend, ClusterBackend) else keep


def _keep_of_cluster(cluster: ClusterBackend, keep: Callable[[Dataset], Dataset], data: Dataset) -> Dataset:
    """Encode all prompts at once, which they are then read from; one that is refused is left to be found by its row."""
    with suppress(BackendError):
        cluster.encode_all([example.prompt for example in data.examples])
    return keep(data)


def fit_problems(
    keep: Callable[[Dataset], Dataset], splits: Splits, held_out: HeldOutSets
) -> tuple[Splits, HeldOutSets]:
    """Return the problems that the engine can complete, with a note of those that it cannot.

    Raises:
        DataError: there are some, and data.too_long is refuse; or the engine refuses a prompt.
    """
    train, validation, test = keep(splits.train), keep(splits.validation), keep(splits.test)
    probe = None if held_out.probe is None else keep(Dataset("the probe", tuple(held_out.probe.examples)))
    told = [note for data in (train, validation, test, probe) if data for note in data.notes]
    kept = replace(
        splits, train=train, validation=validation, test=test, notes=tuple(dict.fromkeys((*splits.notes, *told)))
    )
    return kept, HeldOutSets(
        validation=replace(held_out.validation, examples=validation.examples),
        test=replace(held_out.test, examples=test.examples),
        probe=None if held_out.probe is None or probe is None else replace(held_out.probe, examples=probe.examples),
    )


@dataclass(frozen=True)
class SearchParts:
    """What a search is made of."""

    learner: Evolution
    splits: Splits
    held_out: HeldOutSets


def make_search_space(config: RunConfig) -> Space:
    """Make the space of a configuration whose gaps are filled in (`resolve`)."""
    chosen = config.space
    settings: dict[str, Any] = {
        "model": model_path(config.model.path),
        "adapter": config.model.adapter,
        "tie": chosen.tie,
        "tie_over": chosen.tie_over,
        "tie_seed": chosen.tie_seed,
    }
    return make_space(str(chosen.name), **merge(f"space {chosen.name!r}", settings, chosen.options))


def make_parts(config: RunConfig, closing: ExitStack) -> SearchParts:
    """Make everything that a search needs; what must be closed is handed to ``closing``. Cheap checks come first."""
    config = resolve(config)
    for reward in config.rewards:
        load_reward(reward.name, **reward.options)
    check_engines(config.backend, config.cluster)
    space, section = make_search_space(config), config.optimizer
    settings = {"dim": space.dim, "sigma": section.sigma, "population": section.population, "seed": config.run.seed}
    optimizer = make_optimizer(section.name, **merge(f"optimizer {section.name!r}", settings, section.options))
    splits = load_splits(config)
    closing.enter_context(joined(config.cluster, space))
    held_out = make_held_out(config, splits, closing, config.cluster)
    backend = make_backend(config.backend, config.model.path, space, cluster=config.cluster)
    closing.callback(backend.close)
    splits, held_out = fit_problems(keep_prompts(config, backend), splits, held_out)
    self_test(
        backend,
        config.backend,
        model=config.model.path,
        space=space,
        candidate=optimizer.ask()[0],
        examples=splits.validation.examples,
    )
    splits = _with_note_of_repeats(splits, config.fitness.prompts)
    fitness = _make_fitness(config, backend, space, splits, held_out.validation.pool)
    selection = _within_budget(config, backend, splits, fitness)
    learner = Evolution(space=space, backend=backend, optimizer=optimizer, fitness=fitness, selection=selection)
    return SearchParts(learner, splits, held_out)


def _with_note_of_repeats(splits: Splits, prompts: int | None) -> Splits:
    """Say so where a generation has more problems than there are."""
    train = len(splits.train.examples)
    if prompts is None or prompts <= train:
        return splits
    text = f"fitness.prompts is {prompts:,}: each generation repeats some of the {train:,} training problems"
    return replace(splits, notes=(*splits.notes, Note("assumed", text)))


def _make_fitness(config: RunConfig, backend: Backend, space: Space, splits: Splits, pool: RewardPool) -> Fitness:
    section, seed = config.fitness, config.run.seed
    parts = FitnessParts(
        backend=backend,
        batches=MiniBatches(splits.train.examples, seed=seed),
        pool=pool,
        sampling=config.sampling.make(seed=seed),
        seed=seed,
        generations=config.run.generations,
        model=config.model.path,
        space=space,
    )
    settings = {"prompts": section.prompts, "samples": section.samples}
    return make_fitness(section.name, parts, **merge(f"fitness {section.name!r}", settings, section.options))


def _within_budget(config: RunConfig, backend: Backend, splits: Splits, fitness: Fitness) -> Fitness:
    budget, seed = config.fitness.kl_budget, config.run.seed
    if budget is None:
        return fitness
    sampling = config.sampling.make(seed=seed)
    return WithinBudget(fitness, backend, splits.train.examples, sampling, budget=budget, seed=seed)


def make_probe(
    section: ProbeSection | None, config: Experiment, closing: ExitStack, cluster: ClusterSection | None = None
) -> HeldOut | None:
    """Load the off-task probe and start the processes that score it, or return None when there is none."""
    if section is None:
        return None
    examples = load_dataset(section, size=section.size, seed=config.run.seed, key="probe.size").examples
    return HeldOut(examples, closing.enter_context(make_pool(section.rewards, config.scoring, cluster)))
