"""Rows that are runs of esalign, over singular values, over raw LoRA factors, or over all weights."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from meter import Meter, Save
from problems import start_of

from esalign.assets import asset
from esalign.commands.build import load_splits, make_backend, make_parts, make_pool
from esalign.config.run import RunConfig
from esalign.data import MiniBatches
from esalign.fitness import FitnessParts
from esalign.fitness.reward import RewardFitness
from esalign.loop import search
from esalign.protocols import Fitness, Optimizer, Space
from esalign.registry import make_optimizer
from esalign.space.adapter import Adapter, write_adapter
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling

ENDLESS = 1_000_000


def train_search(config: RunConfig, meter: Meter) -> None:
    """Run a configuration of `esalign run` by esalign's own loop, until the budget is spent."""
    with ExitStack() as closing:
        learner = make_parts(config, closing).learner
        mean = lambda folder: _save_mean(learner.space, learner.optimizer, folder)  # noqa: E731 - names what is saved
        run_search(learner.optimizer, learner.selection, meter, mean)


def _save_mean(space: Space, optimizer: Optimizer, folder: Path) -> None:
    space.save_pretrained(optimizer.mean, folder / "adapter")
    np.save(folder / "mean.npy", optimizer.mean)


def run_search(optimizer: Optimizer, fitness: Fitness, meter: Meter, save: Save) -> None:
    """Ask, generate, score and tell until the budget is spent."""
    meter.begin()
    for generation in search(optimizer, fitness, generations=ENDLESS):
        spent = generation.evaluation
        meter.step(save, prompt=spent.prompt_tokens, generated=spent.generated_tokens, scored=spent.scored_tokens)
        if meter.over:
            return


class WrittenBackend:
    """The torch engine with candidates that are written into its weights, one after another.

    Args:
        config: the run.
        adapter: merged into the weights at the start.
    """

    def __init__(self, config: RunConfig, adapter: Adapter) -> None:
        self._inner: Any = make_backend(config.backend, config.model.path, None)
        self.model = self._inner._engine.model  # noqa: SLF001 - engines of esalign never write weights, so offer no way
        self.layers = {m.name: self.model.get_submodule(m.name).weight.data for m in adapter.modules}
        self.base = {name: weight.numpy().copy() for name, weight in self.layers.items()}
        self.write_adapter(adapter)
        self.write: Any = None

    def write_adapter(self, adapter: Adapter) -> None:
        """Make the weights those of the base model with an adapter."""
        for module in adapter.modules:
            merged = self.base[module.name] + module.scaling * (module.B @ module.A)
            self.layers[module.name].numpy()[:] = merged

    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt with every candidate, one candidate at a time."""
        rows = []
        for i, candidate in enumerate(candidates):
            self.write(candidate)
            told = (lambda _, j, answer, i=i: on_completion(i, j, answer)) if on_completion else None
            rows += self._inner.generate(np.zeros((1, 0)), prompts, sampling, told)
        return rows

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt."""
        ids: tuple[int, ...] = self._inner.encode(prompt)
        return ids


class RawLora:
    """The space of all entries of all LoRA factors, in units of each factor's root mean square."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.dim = sum(module.A.size + module.B.size for module in adapter.modules)

    def adapt(self, vector: Array) -> Adapter:
        """Return the adapter of a search vector, shape (dim,)."""
        modules, at = [], 0
        for module in self.adapter.modules:
            factors = {}
            for name in ("A", "B"):
                start = getattr(module, name)
                offsets = vector[at : at + start.size].reshape(start.shape)
                factors[name] = (start + np.sqrt(np.mean(start**2)) * offsets).astype(np.float32)
                at += start.size
            modules.append(replace(module, **factors))
        return replace(self.adapter, modules=tuple(modules))


def train_raw_lora(config: RunConfig, meter: Meter) -> None:
    """Search over the LoRA factors' own entries."""
    space = RawLora(start_of(config).adapter)
    backend = WrittenBackend(config, space.adapter)
    backend.write = lambda vector: backend.write_adapter(space.adapt(vector))
    section = config.optimizer
    optimizer = make_optimizer(
        section.name,
        dim=space.dim,
        sigma=section.sigma,
        population=section.population,
        seed=config.run.seed,
        **section.options,
    )

    def save(folder: Path) -> None:
        write_adapter(space.adapt(optimizer.mean), folder / "adapter")

    with make_pool(config.rewards, config.scoring) as pool:
        run_search(optimizer, _reward_fitness(config, backend, pool), meter, save)


class SeededEs:
    """Evolution over all weights, a candidate being the seed of its noise.

    Qiu et al. (2025), "Evolution Strategies at Scale", arXiv 2509.24372, Algorithm 2: rewards become z-scores, and
    ``theta += step / members * sum(z * noise)``, the noise drawn anew from its seed. Here theta is a copy of its own,
    so that adding and taking away noise leaves no rounding errors in it.

    Args:
        weights: the model's, which candidates are written into.
        sigma: standard deviation of the noise.
        step: the paper's learning rate, which has sigma divided out.
        members: candidates of a generation.
        seed: of the candidates' seeds.
    """

    def __init__(self, weights: Sequence[Any], *, sigma: float, step: float, members: int, seed: int) -> None:
        self.sigma, self._step, self._members = sigma, step, members
        self._weights = [weight.numpy() for weight in weights]
        self._theta = [weight.copy() for weight in self._weights]
        self._rng = np.random.default_rng(seed)
        self.mean = np.zeros(1)

    def write(self, candidate: Array) -> None:
        """Make the weights those of a candidate, shape (1,)."""
        for weight, theta, noise in zip(self._weights, self._theta, self._noise(candidate), strict=True):
            np.multiply(noise, self.sigma, out=noise)
            np.add(theta, noise, out=weight)

    def restore(self) -> None:
        """Make the weights theta."""
        for weight, theta in zip(self._weights, self._theta, strict=True):
            weight[:] = theta

    def _noise(self, candidate: Array) -> list[Array]:
        rng = np.random.default_rng(int(candidate[0]))
        return [rng.standard_normal(theta.shape, dtype=np.float32) for theta in self._theta]

    def ask(self) -> Array:
        """Return the candidates' seeds, shape (members, 1)."""
        return self._rng.integers(2**40, size=(self._members, 1)).astype(np.float64)

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Move theta along the noise, weighted by z-scores."""
        scores = (fitness - fitness.mean()) / (fitness.std() + 1e-8)
        for candidate, score in zip(candidates, scores, strict=True):
            for theta, noise in zip(self._theta, self._noise(candidate), strict=True):
                np.add(theta, np.float32(self._step / self._members * score) * noise, out=theta)


def train_full(config: RunConfig, options: dict[str, float], meter: Meter) -> None:
    """Search over all weights of the model, the start's adapter merged into them."""
    from transformers import AutoTokenizer

    backend = WrittenBackend(config, start_of(config).adapter)
    optimizer: Any = SeededEs(
        [parameter.data for parameter in backend.model.parameters()],
        sigma=options["sigma"],
        step=options["step"],
        members=int(options["members"]),
        seed=config.run.seed,
    )
    backend.write = optimizer.write
    tokenizer: Any = AutoTokenizer.from_pretrained(asset("embedded/model"))

    def save(folder: Path) -> None:
        optimizer.restore()
        backend.model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

    with make_pool(config.rewards, config.scoring) as pool:
        run_search(optimizer, _reward_fitness(config, backend, pool), meter, save)


def _reward_fitness(config: RunConfig, backend: Any, pool: Any) -> RewardFitness:
    seed = config.run.seed
    batches = MiniBatches(load_splits(config).train.examples, seed=seed)
    section = config.fitness
    sampling = config.sampling.make(seed=seed)
    parts = FitnessParts(backend, batches, pool, sampling, seed=seed)
    samples = section.samples or 1
    return RewardFitness(parts, prompts=section.prompts or 100, samples=samples, **section.options)
