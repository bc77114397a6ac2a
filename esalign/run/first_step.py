"""What the first step of a search does to completions: next to nothing, something, or damage."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from esalign.protocols import Backend
from esalign.seeds import Use, generator
from esalign.types import Completion, Prompt, Sampling

CANDIDATES, PROMPTS = 4, 16
LEAST_CHANGED = 0.15  # below, the candidates of a generation hardly differ, so that nothing tells them apart
MOST_DAMAGE = 0.2  # above, fitness says who broke least
TRIES = 5
MANY = 16  # of fewer tokens or words, a few are easily said twice


@dataclass(frozen=True)
class FirstStep:
    """What candidates at a step size do to completions.

    Args:
        sigma: the step size.
        changed: share of completions that differ from the start's.
        broken: share of completions that are empty, cut at the limit, or repeat themselves.
        broken_at_start: the same of the start.
    """

    sigma: float
    changed: float
    broken: float
    broken_at_start: float

    @property
    def too_small(self) -> bool:
        """Whether hardly a completion changes."""
        return self.changed < LEAST_CHANGED

    @property
    def too_large(self) -> bool:
        """Whether many completions break that did not at the start."""
        return self.broken > self.broken_at_start + MOST_DAMAGE


def try_first_step(
    backend: Backend, dim: int, prompts: Sequence[Prompt], sampling: Sampling, *, sigma: float, seed: int
) -> tuple[FirstStep, float | None]:
    """Complete a few prompts at the start and at random vectors of a step size.

    Args:
        backend: the engine.
        dim: length of the search vector.
        prompts: of which the first few are taken.
        sampling: how to decode, but greedily.
        sigma: the step size.
        seed: of the vectors' directions.

    Returns:
        What the step does, and a better step size: None where this one is good, or none better was found.
    """
    few, greedy = prompts[:PROMPTS], replace(sampling, temperature=0.0)
    directions = generator(seed, Use.FIRST_STEP).standard_normal((CANDIDATES, dim))
    [start] = backend.generate(np.zeros((1, dim)), few, greedy)

    def measure(size: float) -> FirstStep:
        return compare(size, backend.generate(size * directions, few, greedy), start)

    first = measure(sigma)
    step, tried = first, 0
    while (step.too_small or step.too_large) and tried < TRIES:
        if step.too_small != first.too_small:  # from too small at once to too large: between the two
            return first, (step.sigma * first.sigma) ** 0.5
        step, tried = measure(step.sigma * (2.0 if step.too_small else 0.5)), tried + 1
    good = not (step.too_small or step.too_large)
    return first, step.sigma if good and step is not first else None


def compare(sigma: float, rows: Sequence[Sequence[Completion]], start: Sequence[Completion]) -> FirstStep:
    """Compare completions of candidates at a step size, a row for each, with the start's of the same prompts."""
    changed = [one.token_ids != was.token_ids for row in rows for one, was in zip(row, start, strict=True)]
    broken = [is_broken(one) for row in rows for one in row]
    return FirstStep(sigma, float(np.mean(changed)), float(np.mean(broken)), float(np.mean([*map(is_broken, start)])))


def is_broken(completion: Completion) -> bool:
    """Tell whether a completion is empty, cut at the limit, or says little again and again."""
    cut = completion.finish_reason == "length"
    return not completion.text.strip() or cut or repeats_itself(completion.token_ids)


def repeats_itself(parts: Sequence[Hashable]) -> bool:
    """Tell whether many tokens, or words, are few ones again and again.

    >>> repeats_itself("so it is what it is and so on and on it goes, again".split())
    False
    >>> repeats_itself(["no", "no", "never"] * 6)
    True
    """
    return len(parts) >= MANY and len(set(parts)) <= len(parts) / 4
