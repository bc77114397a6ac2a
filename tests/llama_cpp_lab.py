"""A tiny model, its space and candidates, and engines of them, for tests of the inside of the llama.cpp engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from esalign_llama_cpp import LlamaCppBackend, config, convert_model, names
from models import ATTENTION, MLP, make_tiny

from esalign.space import SvdLora
from esalign.types import Array, Sampling

PROMPTS = [f"{'Find the sum. ' * (j % 3)}{3 * j + 1} + {5 * j + 2} =" for j in range(12)]  # of mixed length


@dataclass(frozen=True)
class Lab:
    """A model as transformers and as llama.cpp have it, a space, and six candidates of it."""

    model: Path
    gguf: Path
    space: SvdLora
    candidates: Array


def open_lab(folder: Path, **config: Any) -> Lab:
    """Make a tiny llama."""
    tiny = make_tiny(folder, "llama", targets=ATTENTION + MLP, **config)
    space = SvdLora.from_pretrained(tiny.adapter)
    return Lab(tiny.model, convert_model(tiny.model, folder / "model.gguf"), space, draw(space, 6))


def draw(space: SvdLora, population: int, spread: float = 0.5) -> Array:
    """Return candidates, shape (population, dim)."""
    return np.random.default_rng(0).standard_normal((population, space.dim)) * spread


@contextmanager
def engines(lab: Lab) -> Iterator[Callable[..., LlamaCppBackend]]:
    """Lend a function that starts engines, of one thread unless told otherwise; they are closed at the end."""
    made: list[LlamaCppBackend] = []

    def make(**options: Any) -> LlamaCppBackend:
        made.append(LlamaCppBackend(**({"model": lab.model, "space": lab.space, "threads": 1} | options)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def complete(
    backend: LlamaCppBackend, candidates: Array, prompts: Sequence[Any] = PROMPTS, **sampling: Any
) -> list[list[tuple[int, ...]]]:
    """Return the ids of completions: greedy ones of 12 tokens unless told otherwise."""
    rows = backend.generate(candidates, prompts, Sampling(**({"max_tokens": 12} | sampling)))
    return [[completion.token_ids for completion in row] for row in rows]


def pretend_smollm3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let llamas be converted to an architecture that llama.cpp knows and esalign does not."""
    monkeypatch.setitem(config.ARCHITECTURE_OF, "llama", "smollm3")
    monkeypatch.setitem(names.LINEAR, "smollm3", names.LINEAR["llama"])
    monkeypatch.setitem(names.NORMS, "smollm3", names.NORMS["llama"])
