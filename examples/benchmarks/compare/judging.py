"""Judging snapshots: on validation problems, which choose, and on test problems, which nothing was chosen by."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from meter import processor_seconds

from esalign.assets import adapter_path, asset
from esalign.commands.build import load_splits, make_backend, make_pool, make_probe, make_search_space, resolve
from esalign.config.run import RunConfig
from esalign.protocols import Backend
from esalign.run.evaluate import HeldOut, HeldOutResult, evaluate, log_probs
from esalign.run.statistics import estimate
from esalign.run.step_back import step_back
from esalign.seeds import Use, derive
from esalign.space import SvdLora
from esalign.types import Array, Completion, Prompt, Sampling

CURVE_PROBLEMS = 500
KL_PROBLEMS = 64
DECODINGS = {"greedy": 0.0, "sampled": 1.0, "at 0.7": 0.7}
ON_THE_WAY = ("greedy", "sampled")
SAMPLES = 4
"""Drawn completions of a problem of the chosen snapshot."""
PASS_PROBLEMS, PASS_SAMPLES = 200, 16


class Judge:
    """Everything that snapshots of one seed are judged by.

    Args:
        config: of the row: its problems, rewards and decoding.
        adapter: the task's start, which gains and KL refer to, of rows without an adapter too.
        closing: closes what must be closed.
        by_validation: whether validation problems take the place of the test problems.
    """

    def __init__(self, config: RunConfig, adapter: str, closing: ExitStack, *, by_validation: bool = False) -> None:
        self._config, self._adapter = config, adapter_path(adapter)
        splits = load_splits(config)
        pool = closing.enter_context(make_pool(config.rewards, config.scoring))
        self._validation = HeldOut(splits.validation.examples, pool)
        self._test = self._validation if by_validation else HeldOut(splits.test.examples, pool)
        self._probe = make_probe(config.probe, config, closing)

    def validate(self, snapshot: Path | None) -> dict[str, float]:
        """Return the mean scores on the validation problems, by decoding."""
        with self._open(snapshot) as (backend, zero):
            scores = {name: self._scores(backend, zero, self._validation, Use.VALIDATION, name) for name in ON_THE_WAY}
        return {name: float(values.mean()) for name, values in scores.items()}

    def step_back(self, snapshot: Path) -> tuple[Path, float, float]:
        """Do with a search's snapshot what a run does with its result.

        Returns:
            What is left of it, and of its way, and the processor seconds that it took.
        """
        mean, validation = np.load(snapshot / "mean.npy"), self._validation
        config = resolve(self._config)
        space = make_search_space(config)
        with ExitStack() as stack:
            backend = make_backend(config.backend, config.model.path, space)
            stack.callback(backend.close)

            def judge(share: float, problems: HeldOut, sampling: Sampling) -> HeldOutResult:
                return evaluate(backend, problems, share * mean, sampling)

            def likelihood(share: float, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Array:
                return log_probs(backend, share * mean, prompts, completions)

            sampling = self._sampling(Use.VALIDATION, "greedy")
            start = judge(0.0, validation, sampling).scores  # known to a run, so it is not counted
            began = processor_seconds()
            share, _ = step_back(judge, likelihood, validation, start, sampling)
            seconds = processor_seconds() - began
        left = snapshot.with_name(f"{snapshot.name}-back")
        space.save_pretrained(share * mean, left / "adapter")
        return left, share, seconds

    def test(
        self, snapshot: Path | None, *, problems: int, decodings: Sequence[str] = tuple(DECODINGS), samples: int = 1
    ) -> dict[str, Array]:
        """Return the scores of the first test problems by decoding, shape (problems, samples), one sample if greedy."""
        scores = {}
        with self._open(snapshot) as (backend, zero):
            for name in decodings:
                drawn = samples if DECODINGS[name] else 1
                repeated = tuple(e for e in self._test.examples[:problems] for _ in range(drawn))
                flat = self._scores(backend, zero, replace(self._test, examples=repeated), Use.TEST, name)
                scores[name] = flat.reshape(-1, drawn)
        return scores

    def on_the_way(self, snapshot: Path | None) -> dict[str, dict[str, float]]:
        """Return the mean score on the test problems of curves, by decoding."""
        scores = self.test(snapshot, problems=CURVE_PROBLEMS, decodings=ON_THE_WAY)
        return {name: interval(values[:, 0]) for name, values in scores.items()}

    def pass_at(self, snapshot: Path | None) -> dict[str, float]:
        """Return pass@k at temperature 1 of the first test problems, k a power of two up to the samples drawn.

        The unbiased estimate of Chen et al. (2021), "Evaluating Large Language Models Trained on Code", arXiv
        2107.03374: 1 - C(n - c, k) / C(n, k), with c of n samples right.
        """
        repeated = tuple(e for e in self._test.examples[:PASS_PROBLEMS] for _ in range(PASS_SAMPLES))
        with self._open(snapshot) as (backend, zero):
            scores = self._scores(backend, zero, replace(self._test, examples=repeated), Use.TEST, "sampled")
        right = (scores.reshape(-1, PASS_SAMPLES) == 1).sum(axis=1)
        wrong = [PASS_SAMPLES - int(count) for count in right]
        powers = [2**power for power in range(PASS_SAMPLES.bit_length())]
        return {str(k): float(np.mean([1 - comb(w, k) / comb(PASS_SAMPLES, k) for w in wrong])) for k in powers}

    def probe(self, snapshot: Path | None) -> Array | None:
        """Return the scores on the off-task probe, greedy."""
        if self._probe is None:
            return None
        with self._open(snapshot) as (backend, zero):
            return self._scores(backend, zero, self._probe, Use.PROBE, "greedy")

    def kl(self, snapshot: Path | None) -> float:
        """Estimate KL(snapshot || start) in nats a token by k3, from answers that the snapshot samples."""
        prompts = [example.prompt for example in self._validation.examples[:KL_PROBLEMS]]
        with self._open(snapshot) as (backend, zero):
            rows = backend.generate(zero[None], prompts, self._sampling(Use.KL_TO_START, "sampled"))
            pairs = [(backend.encode(p), c.token_ids) for p, c in zip(prompts, rows[0], strict=True)]
            own = np.concatenate(backend.score(zero[None], pairs)[0]).astype(np.float64)
        with self._open(None) as (backend, zero):
            log_ratio = np.concatenate(backend.score(zero[None], pairs)[0]) - own
        return float(np.mean(np.expm1(log_ratio) - log_ratio))

    def _scores(self, backend: Backend, zero: Array, held_out: HeldOut, use: Use, decoding: str) -> Array:
        return evaluate(backend, held_out, zero, self._sampling(use, decoding)).scores

    def _sampling(self, use: Use, decoding: str) -> Any:
        sampling = self._config.sampling.make(seed=derive(self._config.run.seed, use))
        return replace(sampling, temperature=DECODINGS[decoding])

    @contextmanager
    def _open(self, snapshot: Path | None) -> Iterator[tuple[Backend, Array]]:
        """Lend the engine with a snapshot, None being the start, and the search vector that leaves it as it is."""
        model = str(asset("embedded/model"))
        space: SvdLora | None = None
        if snapshot is not None and (snapshot / "model").is_dir():
            model = str(snapshot / "model")
        else:
            space = SvdLora.from_pretrained(self._adapter if snapshot is None else snapshot / "adapter")
        backend = make_backend(self._config.backend, model, space)
        try:
            yield backend, np.zeros(space.dim if space else 0)
        finally:
            backend.close()


def interval(scores: Array) -> dict[str, float]:
    """Return a mean with its 95 % interval, as results hold it."""
    value = estimate(scores)
    return {
        "mean": round(value.mean, 4),
        "low": round(value.low, 4),
        "high": round(value.high, 4),
        "count": value.count,
    }
