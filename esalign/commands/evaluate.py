"""What `esalign eval` does."""

from contextlib import ExitStack

import numpy as np

from esalign.assets import model_path
from esalign.commands.build import keep_prompts, load_splits, make_backend, make_pool
from esalign.config.run import RunConfig
from esalign.errors import ConfigError
from esalign.run.evaluate import HeldOutResult, evaluate
from esalign.space import make_space


def judge(config: RunConfig, *, adapter: str | None, split: str) -> HeldOutResult:
    """Evaluate a model on the problems of a split, with an adapter, or with None without.

    Raises:
        ConfigError: no such split.
    """
    splits = load_splits(config)
    datasets = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if split not in datasets:
        raise ConfigError(f"no split {split!r}, expected one of {', '.join(datasets)}")
    space = make_space("svd-lora", model=model_path(config.model.path), adapter=adapter) if adapter else None
    with ExitStack() as closing:
        pool = closing.enter_context(make_pool(config.rewards, config.scoring))
        backend = make_backend(config.backend, config.model.path, space)
        closing.callback(backend.close)
        sampling = config.sampling.make(seed=config.run.seed)
        examples = keep_prompts(config, backend)(datasets[split]).examples
        return evaluate(backend, pool, np.zeros(space.dim if space else 0), examples, sampling)
