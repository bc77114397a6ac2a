"""What is done with the logits: answering prompts, and scoring given answers."""

from collections.abc import Callable, Sequence

import numpy as np

from esalign.engines.text import TextCodec
from esalign.types import Array, Completion, Sampling
from esalign_llama_cpp.decoder import Group
from esalign_llama_cpp.sampling import choose, log_probabilities
from esalign_llama_cpp.text import StopStrings


class Answers:
    """Answers one candidate's prompts, token by token; a member is a prompt.

    Args:
        codec: of the model.
        sampling: how to decode.
        stops: finds stop strings; None where there are none.
        uniforms: each prompt's random numbers, common to all candidates.
        finish: called with (prompt, answer) as each one ends.
    """

    def __init__(
        self,
        codec: TextCodec,
        sampling: Sampling,
        stops: StopStrings | None,
        uniforms: Sequence[Array | None],
        finish: Callable[[int, Completion], None],
    ) -> None:
        self._codec = codec
        self._sampling = sampling
        self._stops = stops
        self._uniforms = uniforms
        self._finish = finish
        self._ids: list[list[int]] = [[] for _ in uniforms]

    def consume(self, member: int, logits: Array) -> Sequence[int]:
        """Choose a token, and feed it unless the answer has ended."""
        ids = self._ids[member]
        uniforms = self._uniforms[member]
        token = choose(logits[-1], self._sampling, None if uniforms is None else uniforms[len(ids)])
        ids.append(token)
        ended = token in self._codec.ends or len(ids) == self._sampling.max_tokens
        if ended or (self._stops is not None and self._stops.completed(ids)):
            self._finish(member, self._codec.complete(ids, self._sampling.stop))
            return ()
        return (token,)


class Scores:
    """Collects one candidate's log-probabilities of given answers; a member is a sequence.

    Args:
        answers: the given ids.
        wanted: per answer the ids of interest at each position, shape (tokens, k).
    """

    def __init__(self, answers: Sequence[tuple[int, ...]], wanted: Sequence[Array]) -> None:
        self._answers = answers
        self._wanted = wanted
        self._filled = [0] * len(answers)
        self.values = [np.empty(ids.shape, np.float32) for ids in wanted]

    def consume(self, member: int, logits: Array) -> Sequence[int]:
        """Note the log-probabilities, and feed the answer once the prompt is read."""
        start = self._filled[member]
        stop = self._filled[member] = start + len(logits)
        self.values[member][start:stop] = log_probabilities(logits, self._wanted[member][start:stop])
        return self._answers[member][:-1] if start == 0 else ()


def group_by_prompt(prompts: Sequence[tuple[int, ...]], members: Sequence[int]) -> list[Group]:
    """Put together the members whose prompts are equal.

    >>> group_by_prompt([(1, 2), (3,), (1, 2)], [0, 1, 2])
    [Group(prompt=(1, 2), members=(0, 2)), Group(prompt=(3,), members=(1,))]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for member in members:
        groups.setdefault(prompts[member], []).append(member)
    return [Group(prompt, tuple(equal)) for prompt, equal in groups.items()]
