"""What `esalign eval` does."""

from contextlib import ExitStack

import numpy as np

from esalign.assets import model_path
from esalign.commands.build import keep_prompts, load_splits, make_backend, make_pool
from esalign.commands.hub import find_hub
from esalign.config.run import RunConfig
from esalign.errors import ConfigError
from esalign.run.evaluate import HeldOut, HeldOutResult, evaluate
from esalign.run.self_test import self_test
from esalign.space import make_space


def judge(config: RunConfig, *, adapter: str | None, split: str) -> HeldOutResult:
    """Evaluate a model on the problems of a split, with an adapter, or with None without.

    Raises:
        ConfigError: no such split.
    """
    find_hub(config)
    splits = load_splits(config)
    datasets = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if split not in datasets:
        raise ConfigError(f"no split {split!r}, expected one of {', '.join(datasets)}")
    space = make_space("svd-lora", model=model_path(config.model.path), adapter=adapter) if adapter else None
    with ExitStack() as closing:
        pool = closing.enter_context(make_pool(config.rewards, config.scoring))
        backend = make_backend(config.backend, config.model.path, space, cluster=config.cluster)
        closing.callback(backend.close)
        start, examples = np.zeros(space.dim if space else 0), keep_prompts(config, backend)(datasets[split]).examples
        self_test(backend, config.backend, model=config.model.path, space=space, candidate=start, examples=examples)
        return evaluate(backend, HeldOut(examples, pool), start, config.sampling.make(seed=config.run.seed))
