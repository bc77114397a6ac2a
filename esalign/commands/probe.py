"""What `esalign probe` does."""

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from esalign.commands.build import make_parts, resolve
from esalign.commands.evaluate import check_output
from esalign.commands.hub import find_hub
from esalign.config.run import MOST_SIGMA, RunConfig
from esalign.data import MiniBatches
from esalign.errors import ConfigError
from esalign.files import finite, write_json
from esalign.fitness.completions import complete, mix
from esalign.fitness.reward import SAMPLED
from esalign.run.signal import GRID, LEAST_PROMPTS, PAIRS, Probed, measure, propose
from esalign.run.statistics import estimate
from esalign.seeds import Use, derive, generator

Progress = Callable[[int, int], None]
"""Called with the completions that are finished, and how many there will be."""


def probe(config: RunConfig, *, output: Path | None = None, progress: Progress = lambda *_: None) -> Probed:
    """Let mirrored candidates of several step sizes complete the first prompts of a run, and propose its settings.

    Args:
        config: the run.
        output: new file for what is found, as JSON.
        progress: who waits.

    Raises:
        ConfigError: another fitness than ``reward``, fewer than two training problems, or the file exists.
    """
    check_output(output)
    if config.fitness.name != "reward":
        raise ConfigError(
            f"fitness.name is {config.fitness.name!r}, but only 'reward' can be probed, as it alone is the mean "
            "reward of what candidates write: add fitness.name=reward, or use `esalign run --dry-run`"
        )
    find_hub(config)
    config = resolve(config)
    samples, seed, base = config.fitness.samples or 1, config.run.seed, config.optimizer.sigma or 1.0
    sigmas = [factor * base for factor in GRID if factor * base <= MOST_SIGMA] or [base]
    with ExitStack() as closing:
        parts = make_parts(config, closing)
        learner, train = parts.learner, parts.splits.train.examples
        if len(train) < 2:
            raise ConfigError(f"there is {len(train)} training problem, expected at least 2 to probe with")
        wanted = max(config.fitness.prompts or 0, LEAST_PROMPTS)
        chosen = MiniBatches(train, seed=seed).next(min(wanted, len(train)))  # the first generation's
        examples = [example for example in chosen for _ in range(samples)]
        directions = generator(seed, Use.FIRST_STEP).standard_normal((PAIRS, learner.space.dim))
        candidates = np.concatenate(
            [0 * directions[:1], *(sign * sigma * directions for sigma in sigmas for sign in (1, -1))]
        )
        finished, total = itertools.count(1), len(candidates) * len(examples)
        began = time.perf_counter()
        sampling = config.sampling.make(seed=derive(seed, Use.GENERATION, 1))
        completed = complete(
            learner.backend,
            parts.held_out.validation.pool,
            candidates,
            examples,
            mix(sampling, len(examples), config.fitness.options.get("sampled", SAMPLED)),
            on_completion=lambda: progress(next(finished), total),
        ).refuse_unscored()
        seconds = time.perf_counter() - began
    signals = measure(sigmas, completed, samples=samples)
    start = estimate(completed.rewards[0]).mean
    proposal = propose(signals, dim=learner.space.dim, prompts=len(chosen), most_prompts=len(train))
    tokens = next(one.tokens for one in signals if one.step.sigma == proposal.sigma)
    work = config.run.generations * proposal.population * proposal.prompts * samples * tokens
    probed = Probed(
        start=start,
        signals=tuple(signals),
        proposal=proposal,
        generations=config.run.generations,
        seconds=work * seconds / max(completed.generated_tokens, 1),
        adapts=config.fitness.prompts is None,
    )
    if output is not None:
        write_json(output, finite(probed.row()))
    return probed
