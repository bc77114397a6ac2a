"""The values that cross the boundaries between optimiser, engine and fitness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from esalign.errors import OptimizerError

Array: TypeAlias = NDArray[Any]

State: TypeAlias = dict[str, Any]
"""JSON scalars, lists, arrays and nested ``State``: all that a checkpoint may hold. No pickles."""


class Message(TypedDict):
    """One turn of a chat, e.g. ``{"role": "user", "content": "2 + 2 = ?"}``."""

    role: str
    content: str
    tool_calls: NotRequired[Any]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]


Prompt: TypeAlias = str | Sequence[Message] | Sequence[int]
"""Text, fed as it is; chat messages, rendered by the tokenizer's chat template; or token ids, fed as they are."""

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How completions are decoded.

    Args:
        max_tokens: the most tokens of one completion, at least 1.
        temperature: 0 is greedy; above, the softmax's temperature.
        top_p: nucleus of the distribution to draw from, in (0, 1].
        top_k: number of tokens to draw from; 0 is all.
        seed: the completion of prompt ``j`` of a call draws from a random stream of its own, derived from (seed, j) and
            from nothing else. So all candidates draw alike at a prompt, and several samples of one prompt are
            that prompt repeated.
        offset: what is added to j: a call that completes a part of a list of prompts, from its tenth on, say, draws
            with offset 9 as the call that completes them all.
        greedy: prompts j below this, the offset counted, are completed greedily whatever the temperature: one call may
            do both.
        stop: strings that end a completion; the completion's text ends before the first of them.
        logprob: whether completions come with their log-probability.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    offset: int = field(default=0, kw_only=True)
    greedy: int = field(default=0, kw_only=True)
    stop: tuple[str, ...] = ()
    logprob: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("offset", self.offset >= 0, "0 or more"),
            ("greedy", self.greedy >= 0, "0 or more"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty"),
        ):
            if not fits:
                raise ValueError(f"sampling.{name} is {getattr(self, name)!r}, expected {expected}")

    def draws(self, prompt: int) -> bool:
        """Tell whether the completion of prompt j of a call is drawn; else it is greedy.

        >>> part = Sampling(temperature=1.0, greedy=2, offset=1)
        >>> part.draws(0), part.draws(1)
        (False, True)
        """
        return self.temperature > 0.0 and self.offset + prompt >= self.greedy


@dataclass(frozen=True)
class Completion:
    """One completion.

    Args:
        text: decoded without special tokens, cut before a stop string.
        token_ids: the generated ids, the closing end-of-sequence token included when there is one. With a stop string,
            all the tokens that were generated.
        finish_reason: ``"stop"`` for end of sequence or a stop string, ``"length"`` for the token limit.
        logprob: natural log of the probability that the model itself, at temperature 1 and without nucleus or top-k,
            writes ``token_ids``; None where nobody asked for it. It has no part in whether completions are equal, as a
            batch's company may change its last digits.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float | None = field(default=None, compare=False)


Sequences: TypeAlias = Sequence[tuple[Sequence[int], Sequence[int]]]
"""(prompt ids, completion ids) pairs, for teacher-forced scoring."""

OnCompletion: TypeAlias = Callable[[int, int, Completion], None]
"""Called with (candidate, prompt, completion) as soon as a completion is finished, in any order."""


@dataclass(frozen=True)
class Example:
    """One problem: a prompt, the columns that the reward may want, and where it comes from, for errors."""

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Sample:
    """One completed problem with its reward (None: all rewards abstained), for people to read."""

    prompt: Prompt
    completion: str
    reward: float | None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return what the files of a run hold of it."""
        return {"prompt": self.prompt, "completion": self.completion, "reward": self.reward}


@dataclass(frozen=True)
class Evaluation:
    """What a fitness says of a population.

    Args:
        fitness: shape (population,), finite, to be maximised.
        metrics: numbers for the metrics file, e.g. ``reward_std`` or ``errors/math/timeout``; and ``error_examples``, a
            message of each kind of error.
        generated_tokens: tokens that the engine generated for this evaluation.
        scored_tokens: tokens that the engine read teacher-forced for it.
        prompt_tokens: prompt tokens that the engine read for it.
        samples: a few completions, for people to read.
        usable: whether the optimiser shall learn from it. If not, it is asked again, and a fitness that steers can have
            other steps by then.
    """

    fitness: Array
    metrics: Mapping[str, Any] = field(default_factory=dict)
    generated_tokens: int = 0
    scored_tokens: int = 0
    prompt_tokens: int = 0
    samples: tuple[Sample, ...] = ()
    usable: bool = True


@dataclass(frozen=True)
class Steering:
    """How a search goes on.

    Args:
        mean: where from, shape (dim,).
        scale: step size, in units of the optimiser's first one; positive.
    """

    mean: Array
    scale: float


def as_candidates(candidates: Any, dim: int) -> Array:
    """Return candidates as a float64 array (population, dim), or say clearly what is wrong with them.

    Raises:
        OptimizerError: another shape, no candidate, or a number that is not finite.
    """
    array = np.asarray(candidates, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != dim or not len(array):
        raise OptimizerError(f"candidates have shape {array.shape}, expected (population, {dim})")
    if not np.isfinite(array).all():
        raise OptimizerError("candidates hold numbers that are not finite: is a step size far too large?")
    return array
