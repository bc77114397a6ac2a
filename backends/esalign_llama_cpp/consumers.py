"""What is done with the logits: completing prompts, and scoring given completions."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from esalign.engines.checks import Given
from esalign.engines.sampling import choose
from esalign.engines.stops import StopStrings
from esalign.engines.text import TextCodec
from esalign.types import Array, Completion, Sampling
from esalign_llama_cpp.decoder import Group


class Completions:
    """Completes prompts with one candidate, token by token; a member is a prompt.

    Args:
        codec: of the model.
        sampling: how to decode.
        stops: finds stop strings; None where there are none.
        uniforms: each prompt's random numbers, common to all candidates, shape (prompts, max_tokens), NaN where it is
            completed greedily, or (prompts, 0) where all are.
        finish: called with (prompt, completion) as each one ends.
    """

    def __init__(
        self,
        codec: TextCodec,
        sampling: Sampling,
        stops: StopStrings | None,
        uniforms: Array,
        finish: Callable[[int, Completion], None],
    ) -> None:
        self._codec = codec
        self._sampling = sampling
        self._stops = stops
        self._ends = codec.ends_with(sampling.stop)
        self._uniforms = uniforms
        self._finish = finish
        self._ids: defaultdict[int, list[int]] = defaultdict(list)
        self._logprobs: defaultdict[int, float] = defaultdict(float)

    def consume(self, member: int, logits: Array) -> Sequence[int]:
        """Choose a token, and feed it unless the completion has ended."""
        ids, stops = self._ids[member], self._stops
        token = choose(logits[-1], self._sampling, self._uniforms[member, len(ids)] if self._uniforms.size else np.nan)
        ids.append(token)
        if self._sampling.logprob:
            self._logprobs[member] += float(_log_probabilities(logits[-1:], np.array([[token]]))[0, 0])
        ended = token in self._ends or len(ids) == self._sampling.max_tokens
        if ended or (stops is not None and stops.may_complete(token) and stops.completed(ids)):
            self._finish(member, self._codec.complete(ids, self._sampling.stop, self._logprobs.get(member)))
            return ()
        return (token,)


class Scores:
    """Collects one candidate's log-probabilities of given completions; a member is a sequence.

    Attributes:
        values: per sequence, of the ids of interest at each token, shape (tokens, k), float32.
    """

    def __init__(self, given: Sequence[Given]) -> None:
        self._given = given
        self._filled = [0] * len(given)
        self.values = [np.empty(one.wanted.shape, np.float32) for one in given]

    def consume(self, member: int, logits: Array) -> Sequence[int]:
        """Note the log-probabilities, and feed the completion once the prompt is read."""
        start = self._filled[member]
        stop = self._filled[member] = start + len(logits)
        self.values[member][start:stop] = _log_probabilities(logits, self._given[member].wanted[start:stop])
        return self._given[member].completion[:-1] if start == 0 else ()


def group_by_prompt(prompts: Sequence[tuple[int, ...]], members: Sequence[int]) -> list[Group]:
    """Put together the members whose prompts are equal.

    >>> group_by_prompt([(1, 2), (3,), (1, 2)], [0, 1, 2])
    [Group(prompt=(1, 2), members=(0, 2)), Group(prompt=(3,), members=(1,))]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for member in members:
        groups.setdefault(prompts[member], []).append(member)
    return [Group(prompt, tuple(equal)) for prompt, equal in groups.items()]


def _log_probabilities(logits: Array, wanted: Array) -> Array:
    """Return the log-probabilities of wanted tokens, ids of shape (tokens, k), from logits (tokens, vocab), float32."""
    peak = logits.max(axis=1, keepdims=True)
    norm = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True, dtype=np.float64))
    return (np.take_along_axis(logits, wanted, axis=1) - norm).astype(np.float32)
