"""What the claims on an engine are made of: the engine, the model that it runs, and what it completes."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from esalign.protocols import Backend, Space
from esalign.testing.reference import Reference
from esalign.types import Array, Completion, Prompt, Sampling

POPULATION = 8
PROMPTS = tuple(
    f"{'Find the sum. ' * (j % 4)}{3 * j + 1} + {5 * j + 2}{' + 7' * (j % 3)} =" for j in range(16)
)  # of mixed length


@dataclass(frozen=True)
class Subject:
    """An engine under test.

    Args:
        make: makes a new engine of the model and the space.
        model: folder of the same model, for transformers to load.
        space: the space of the candidates.
        prompts: at least four texts of mixed length.
        max_tokens: length of completions; prompts and completions must fit the context.
        spread: standard deviation of the candidates' coordinates.
        agreement: least share of greedy completions that must equal the reference's, token for token. Below 1 for
            engines that round otherwise than float32, where a near tie may tip.
        score_tolerance: most that a log-probability may differ from the reference's, in nats.
        batch_invariant: the engine promises that a completion does not depend on what else is in the batch, up to ties
            of logits.
        chat: the tokenizer has a chat template.
    """

    make: Callable[[], Backend]
    model: str | Path
    space: Space
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 24
    spread: float = 0.5
    agreement: float = 1.0
    score_tolerance: float = 1e-4
    batch_invariant: bool = True
    chat: bool = True
    seed: int = field(default=0, kw_only=True)

    @cached_property
    def backend(self) -> Backend:
        """One engine for all claims but those that close it."""
        return self.make()

    @cached_property
    def reference(self) -> Reference:
        """What transformers and peft say."""
        return Reference(self.model, self.space)

    @cached_property
    def candidates(self) -> Array:
        """Search vectors, shape (POPULATION, dim); the first is zero, the adapter itself."""
        noise = np.random.default_rng(self.seed).standard_normal((POPULATION, self.space.dim)) * self.spread
        noise[0] = 0.0
        return noise

    @cached_property
    def greedy(self) -> list[list[Completion]]:
        """The engine's greedy completions."""
        return self.backend.generate(self.candidates, self.prompts, self.sampling())

    @cached_property
    def expected(self) -> list[list[list[int]]]:
        """The reference's greedy completions."""
        ids = [self.backend.encode(prompt) for prompt in self.prompts]
        return [self.reference.complete(candidate, ids, self.max_tokens) for candidate in self.candidates]

    def sampling(self, **changes: Any) -> Sampling:
        """Return how to decode, greedily unless told otherwise."""
        return replace(Sampling(max_tokens=self.max_tokens), **changes)

    def sample(self, candidates: Array, prompts: Sequence[Prompt], seed: int = 5) -> list[list[tuple[int, ...]]]:
        """Return the ids of completions drawn at temperature 1."""
        rows = self.backend.generate(candidates, prompts, self.sampling(temperature=1.0, seed=seed))
        return ids_of(rows)

    def agrees(self, rows: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]], *, slack: int = 0) -> None:
        """Assert that two tables of completions are of one shape and agree on the promised share.

        Args:
            rows: what was got.
            others: what was expected.
            slack: completions that may differ in any case: two batches round differently, which can tip a near tie.
        """
        assert [len(row) for row in rows] == [len(row) for row in others], "tables of completions differ in shape"
        flat = zip(itertools.chain(*rows), itertools.chain(*others), strict=True)
        pairs = [(tuple(a), tuple(b)) for a, b in flat]
        unequal = [pair for pair in pairs if pair[0] != pair[1]]
        allowed = max(slack, (1 - self.agreement) * len(pairs) + 1e-9)
        assert len(unequal) <= allowed, (
            f"{len(unequal)} of {len(pairs)} completions differ; got {unequal[0][0]} where {unequal[0][1]} was expected"
        )


def ids_of(rows: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    """Return the token ids of a table of completions."""
    return [[completion.token_ids for completion in row] for row in rows]
