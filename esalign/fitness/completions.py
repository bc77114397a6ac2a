"""What candidates complete, and what it is worth: generation and scoring side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esalign.protocols import Backend
from esalign.rewards.pool import RewardPool
from esalign.types import Array, Completion, Example, Sample, Sampling

SHOWN_SAMPLES = 3


@dataclass(frozen=True)
class Completed:
    """What candidates wrote, and what it was worth.

    Args:
        rows: ``rows[i][j]``, candidate i's completion of problem j.
        rewards: shape (population, problems), NaN where all rewards abstained.
        errors: number of completions whose scoring failed or timed out, by reward and kind.
        error_examples: one message of each.
    """

    rows: Sequence[Sequence[Completion]]
    rewards: Array
    errors: Mapping[str, int]
    error_examples: Mapping[str, str]

    @property
    def generated_tokens(self) -> int:
        """Number of generated tokens."""
        return sum(len(completion.token_ids) for row in self.rows for completion in row)

    @property
    def truncated(self) -> float:
        """Share of completions cut by the token limit."""
        reasons = [completion.finish_reason for row in self.rows for completion in row]
        return reasons.count("length") / len(reasons)


def complete(
    backend: Backend,
    pool: RewardPool,
    candidates: Array,
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    on_completion: Callable[[], None] | None = None,
) -> Completed:
    """Let candidates, shape (population, dim), complete examples; scoring goes on beside generation.

    ``on_completion`` is called as each completion is finished.
    """

    def submit(i: int, j: int, completion: Completion) -> None:
        pool.submit((i, j), examples[j], completion.text)
        if on_completion is not None:
            on_completion()

    rows = backend.generate(candidates, [example.prompt for example in examples], sampling, submit)
    scores = pool.collect()
    rewards = np.full((len(rows), len(examples)), np.nan)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            reward = scores.rewards[i, j]
            if reward is not None:
                rewards[i, j] = reward
    return Completed(rows, rewards, scores.errors, scores.error_examples)


def make_samples(examples: Sequence[Example], completed: Completed, *, candidate: int = 0) -> tuple[Sample, ...]:
    """Return a candidate's first completions, for people to read."""
    shown = []
    for j, example in enumerate(examples[:SHOWN_SAMPLES]):
        reward = completed.rewards[candidate, j]
        text = completed.rows[candidate][j].text
        shown.append(Sample(example.prompt, text, None if np.isnan(reward) else float(reward), example.columns))
    return tuple(shown)
