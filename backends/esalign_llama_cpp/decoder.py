"""Reading many sequences in common batches: continuous batching over ``llama_decode``.

Sequences enter as groups that share a prompt. What all prompts have in common is read once per candidate, a group's
prompt once per group; the cache is copied from there. What is fed behind the prompt, one chosen token at a time or a
whole completion, is the consumer's choice.

Without a unified cache llama.cpp only computes sequences together whose numbers are consecutive. So the sequences in
work always are 1, 2, 3 and so on: when one ends, the last one moves into its place.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from esalign.types import Array
from esalign_llama_cpp.context import Context

LEAST_SHARED = 8  # tokens in common from which on copying a cache is cheaper than reading them again
PREFIX = 0  # the sequence that holds what all prompts have in common


class Consumer(Protocol):
    """Takes the logits of its sequences, and says what to feed next."""

    def consume(self, member: int, logits: Array) -> Sequence[int]:
        """Return the tokens to feed next to a sequence; none when it is finished.

        Args:
            member: the sequence, as its group names it.
            logits: after each token that was fed, at first after the prompt; shape (tokens, vocab), a view that is
                overwritten later. Those of many tokens may come in several calls; only what the last one returns
                counts.
        """


@dataclass(frozen=True)
class Group:
    """Sequences that begin with the same prompt."""

    prompt: tuple[int, ...]
    members: tuple[int, ...]


@dataclass
class _Work:
    """A sequence in work.

    Args:
        members: whom its logits are for; several while it still reads the prompt that they share.
        tokens: what is left to be fed.
        position: of the next token.
        silent: how many of them come before the first one whose logits are wanted.
    """

    members: tuple[int, ...]
    tokens: deque[int]
    position: int
    silent: int


class Decoder:
    """Runs groups through a context.

    Args:
        context: it must have at least two sequences; one is kept for what all prompts share.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._room = context.sequences - 1

    @property
    def largest_group(self) -> int:
        """The most members of a group: larger ones would keep the others waiting for room."""
        return max(1, self._room // 4)

    def run(self, groups: Sequence[Group], consumer: Consumer) -> None:
        """Feed all groups, until the consumer has finished every member."""
        waiting = deque(sorted(self._split(groups), key=lambda group: -len(group.prompt)))
        shared = self._read_prefix([group.prompt for group in waiting])
        work: list[_Work] = []
        while waiting or work:
            self._admit(waiting, work, shared)
            self._step(work, consumer)

    def _split(self, groups: Sequence[Group]) -> list[Group]:
        size = self.largest_group
        return [
            Group(group.prompt, group.members[start : start + size])
            for group in groups
            for start in range(0, len(group.members), size)
        ]

    def _read_prefix(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Read what all prompts begin with. Returns its length, 0 where it is not worth it."""
        shared = common_prefix(prompts) if len(prompts) > 1 else 0
        if shared < LEAST_SHARED:
            return 0
        context = self._context
        for start in range(0, shared, context.settings.batch):
            part = prompts[0][start : min(shared, start + context.settings.batch)]
            count = len(part)
            context.token[:count] = part
            context.position[:count] = np.arange(start, start + count)
            context.sequence[:count] = PREFIX
            context.wanted[:count] = 0
            context.decode(count)
        return shared

    def _admit(self, waiting: deque[Group], work: list[_Work], shared: int) -> None:
        """Start groups for as long as there is room for all their members."""
        room = self._room - sum(len(sequence.members) for sequence in work)
        while waiting and len(waiting[0].members) <= room:
            group = waiting.popleft()
            room -= len(group.members)
            work.append(_Work(group.members, deque(group.prompt[shared:]), shared, len(group.prompt) - shared - 1))
            if shared:
                self._context.copy(PREFIX, len(work))

    def _step(self, work: list[_Work], consumer: Consumer) -> None:
        """Feed one batch, hand the logits to the consumer, and close the gaps that finished sequences leave."""
        chosen, share = self._choose(work)
        logits = self._feed([(number, work[number - 1]) for number in chosen], share)
        row = 0
        finished = []
        for number in chosen:
            sequence = work[number - 1]
            loud = max(0, share - sequence.silent)
            sequence.silent = max(0, sequence.silent - share)
            rows = logits[row : row + loud]
            row += loud
            if sequence.tokens:  # the rest of them follows in later batches
                if loud:
                    consumer.consume(sequence.members[0], rows)
                continue
            self._continue(work, number, rows, consumer)
            if not sequence.tokens:
                finished.append(number)
        self._close_gaps(work, finished)

    def _choose(self, work: list[_Work]) -> tuple[list[int], int]:
        """Return the numbers of the sequences to feed, and how many tokens of each.

        Those come first that have the most left, so that prompts are read before completions go on. Only such with
        equally many are fed together: llama.cpp would cut the batch where the shortest ends, and how a prompt is cut
        up, which quantised weights make felt, must not depend on its company.
        """
        settings = self._context.settings
        left, silent = max((len(sequence.tokens), sequence.silent) for sequence in work)
        share = min(left, settings.batch if silent else min(settings.batch, settings.outputs))
        loud = max(0, share - silent)
        most = min(settings.batch // share, settings.outputs // loud if loud else settings.batch)
        alike = [n for n, sequence in enumerate(work, 1) if (len(sequence.tokens), sequence.silent) == (left, silent)]
        return alike[:most], share

    def _feed(self, chosen: list[tuple[int, _Work]], share: int) -> Array:
        """Feed as many tokens of each sequence. Returns the logits that are wanted."""
        context = self._context
        stop = 0
        for number, sequence in chosen:
            start, stop = stop, stop + share
            context.token[start:stop] = [sequence.tokens.popleft() for _ in range(share)]
            context.position[start:stop] = np.arange(sequence.position, sequence.position + share)
            context.sequence[start:stop] = number
            context.wanted[start:stop] = 1
            context.wanted[start : start + min(sequence.silent, share)] = 0
            sequence.position += share
        return context.decode(stop)

    def _continue(self, work: list[_Work], number: int, rows: Array, consumer: Consumer) -> None:
        """Ask what to feed next; the members of a group that has read its prompt part here."""
        sequence = work[number - 1]
        first, *others = sequence.members
        sequence.members = (first,)
        for member in others:
            tokens = consumer.consume(member, rows)
            if tokens:
                work.append(_Work((member,), deque(tokens), sequence.position, 0))
                self._context.copy(number, len(work))
        sequence.tokens.extend(consumer.consume(first, rows))

    def _close_gaps(self, work: list[_Work], finished: list[int]) -> None:
        """Forget finished sequences, and move the last ones into their places."""
        for number in reversed(finished):
            last = len(work)
            if number != last:
                self._context.copy(last, number)
                work[number - 1] = work[-1]
            self._context.forget(last)
            work.pop()


def common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all prompts begin with, leaving at least one of each.

    >>> common_prefix([(1, 2, 3, 4), (1, 2, 5)])
    2
    >>> common_prefix([(1, 2), (1, 2)])
    1
    """
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)
