"""What candidates complete, and what it is worth: generation and scoring side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from esalign.errors import RewardError
from esalign.protocols import Backend
from esalign.rewards.pool import RewardPool
from esalign.types import Array, Completion, Example, Prompt, Sample, Sampling

SHOWN_SAMPLES = 3
ERRORS, ERROR_EXAMPLES = "errors/", "error_examples"  # in a row of metrics
TAGS = ("<think>", "<thinking>", "<thought>", "<reasoning>")
BEGINNINGS = tuple(tag + space for tag in TAGS for space in ("\n\n", "\n", " ", ""))


@dataclass(frozen=True)
class Completed:
    """What candidates wrote, and what it was worth.

    Args:
        rows: ``rows[i][j]``, candidate i's completion of problem j.
        rewards: shape (population, problems), NaN where all rewards abstained.
        errors: number of completions whose scoring failed or timed out, by reward and kind.
        error_examples: one message of each.
        begun: of each problem, what its prompt begins for the model, which was scored with the completion; empty for
            nothing.
        all_failed: whether no reward could score any of them.
    """

    rows: Sequence[Sequence[Completion]]
    rewards: Array
    errors: Mapping[str, int]
    error_examples: Mapping[str, str]
    begun: Sequence[str] = ()
    all_failed: bool = False

    @property
    def generated_tokens(self) -> int:
        """Number of generated tokens."""
        return sum(len(completion.token_ids) for row in self.rows for completion in row)

    @property
    def truncated(self) -> float:
        """Share of completions cut by the token limit."""
        reasons = [completion.finish_reason for row in self.rows for completion in row]
        return reasons.count("length") / len(reasons)

    def samples(
        self, examples: Sequence[Example], *, candidate: int = 0, most: int | None = SHOWN_SAMPLES
    ) -> tuple[Sample, ...]:
        """Return a candidate's first completions, or with None all of them, for people to read."""
        shown = []
        for j, example in enumerate(examples[:most]):
            reward, text = self.rewards[candidate, j], self.rows[candidate][j].text
            shown.append(Sample(example.prompt, text, None if np.isnan(reward) else float(reward), example.columns))
        return tuple(shown)

    def refuse_unscored(self) -> Self:
        """Return itself.

        Raises:
            RewardError: no completion could be scored.
        """
        if self.all_failed:
            name, message = next(iter(self.error_examples.items()))
            raise RewardError(
                f"none of {self.rewards.size} completions could be scored, so nothing can be learned: {name}: {message}"
            )
        return self


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

    What a prompt begins for the model, such as the ``<think>`` of a chat template, belongs to what is scored.
    ``on_completion`` is called as each completion is finished.

    Raises:
        RewardError: a reward breaks its contract. Whether all failed, `Completed.refuse_unscored` tells.
    """
    prompts = [example.prompt for example in examples]
    begun = prefilled(backend, prompts)

    def submit(i: int, j: int, completion: Completion) -> None:
        pool.submit((i, j), examples[j], begun[j] + completion.text, completion.token_ids)
        if on_completion is not None:
            on_completion()

    rows = backend.generate(candidates, prompts, sampling, submit)
    scores = pool.collect()
    rewards = np.full((len(rows), len(examples)), np.nan)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            reward = scores.rewards[i, j]
            if reward is not None:
                rewards[i, j] = reward
    return Completed(rows, rewards, scores.errors, scores.error_examples, begun, scores.all_failed)


def mix(sampling: Sampling, problems: int, sampled: float) -> Sampling:
    """Return how so many problems are completed in one call: where decoding is greedy, the last at temperature 1.

    Args:
        sampling: how they would be.
        problems: number of them.
        sampled: the share of the last, in [0, 1].

    >>> mixed = mix(Sampling(), 4, 0.25)
    >>> [mixed.draws(j) for j in range(4)]
    [False, False, False, True]
    """
    if sampling.temperature > 0 or sampled == 0:
        return sampling
    return replace(sampling, temperature=1.0, greedy=problems - round(sampled * problems))


def add_errors(row: Mapping[str, Any], errors: Mapping[str, int], examples: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of metrics with scorings that failed added: how many by ``errors/<name>``, and a message of each."""
    if not errors:
        return dict(row)
    counts = {f"{ERRORS}{name}": row.get(f"{ERRORS}{name}", 0.0) + count for name, count in errors.items()}
    return {**row, **counts, ERROR_EXAMPLES: {**examples, **row.get(ERROR_EXAMPLES, {})}}


def prefilled(backend: Backend, prompts: Sequence[Prompt]) -> list[str]:
    """Return what each prompt begins for the model, mostly nothing: an opening tag at its end, and the space behind it.

    One chat stands for all, as they share a template.
    """
    chat = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
    of_chats = "" if chat is None else _of_ids(backend, backend.encode(chat))
    return [_of_text(prompt) if isinstance(prompt, str) else of_chats for prompt in prompts]


def _of_text(prompt: str) -> str:
    return next((beginning for beginning in BEGINNINGS if prompt.endswith(beginning)), "")


def _of_ids(backend: Backend, ids: tuple[int, ...]) -> str:
    begin = 1 if backend.encode("a")[0] == backend.encode("b")[0] else 0  # a token that begins every text
    for beginning in BEGINNINGS:
        tag = tuple(backend.encode(beginning)[begin:])
        if tag and ids[-len(tag) :] == tag:
            return beginning
    return ""


def mean_of_samples(rewards: Array) -> Array:
    """Return the mean reward of each problem's samples, NaN where all abstained, shape (population, problems).

    Args:
        rewards: shape (population, problems, samples), NaN where they abstained.
    """
    known = (~np.isnan(rewards)).sum(axis=2)
    return np.where(known > 0, np.nansum(rewards, axis=2) / np.maximum(known, 1), np.nan)
