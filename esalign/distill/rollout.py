"""Rollouts: answers drawn from a behaviour of two models in lock-step, with what the teacher thought of every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esalign.distill.behaviour import Behaviour
from esalign.distill.decoder import Decoder, decode
from esalign.distill.divergence import coarsen, reverse_kl, top_support
from esalign.distill.forced import answer_logits, in_batches, pick
from esalign.distill.vocabulary import SharedVocabulary


@dataclass(frozen=True)
class Pair:
    """A student and a teacher of transformers on one device, and the vocabulary that they share."""

    student: Any
    teacher: Any
    vocabulary: SharedVocabulary


@dataclass(frozen=True)
class RolloutOptions:
    """How rollouts are drawn.

    Args:
        max_tokens: the most tokens of an answer.
        support: number of the student's likeliest tokens at which the teacher is remembered; None: the full vocabulary.
        sequences: answers decoded together.
        read_tokens: the most tokens that are read teacher-forced in one pass, where the teacher takes no part.
    """

    max_tokens: int
    support: int | None = 16
    sequences: int = 64
    read_tokens: int = 4096


@dataclass(frozen=True)
class Rollout:
    """One answer, with the teacher's judgement of the distribution at each of its tokens.

    Args:
        prompt_ids: what was answered.
        token_ids: the answer, the end of sequence included if there is one.
        finished: whether it ended by itself.
        support: the student's likeliest ids at each token, shape (tokens, support); None: the full vocabulary.
        teacher: log-probabilities on the support, then its tail, shape (tokens, support + 1); or (tokens, vocab).
        stats: per token, each of shape (tokens,), float32: ``beta``; ``kl_student``, of the behaviour to the student;
            ``reverse_kl``, of the student to the teacher; ``teacher_entropy``; all in nats but beta.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finished: bool
    support: Tensor | None
    teacher: Tensor
    stats: dict[str, Tensor]


@torch.no_grad()
def roll_out(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    behaviour: Behaviour,
    options: RolloutOptions,
    *,
    step: int = 0,
    seed: int = 0,
) -> list[Rollout]:
    """Answer every prompt once. Repeat prompts for several answers.

    The random stream of answer ``j`` depends on (seed, j) alone, so answers do not depend on how they are batched, but
    for rounding.

    Args:
        pair: the two models.
        prompts: token ids, each at least one.
        behaviour: who samples.
        options: how.
        step: the update that the behaviour's schedules are at.
        seed: of the random streams.
    """
    uniforms = draw_uniforms(seed, len(prompts), options.max_tokens).to(pair.student.device)
    rollouts: list[Rollout] = []
    for first in range(0, len(prompts), options.sequences):
        part = slice(first, first + options.sequences)
        batch = _LockStep(pair, prompts[part], behaviour, options, step)
        rollouts += batch.run(uniforms[part])
    return rollouts


def draw_uniforms(seed: int, sequences: int, tokens: int) -> Tensor:
    """Return numbers in [0, 1), shape (sequences, tokens), float64, each row of a stream of its own."""
    rows = [np.random.default_rng((seed, row)).random(tokens) for row in range(sequences)]
    return torch.from_numpy(np.array(rows).reshape(sequences, tokens))


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inversion of its distribution.

    Args:
        logprobs: shape (batch, vocab); they need not sum to one.
        uniforms: in [0, 1), shape (batch,).

    Returns:
        Ids, shape (batch,). A token without mass is never drawn.
    """
    cumulated = logprobs.exp().cumsum(dim=-1)
    total = cumulated[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))
    at = torch.minimum(uniforms.to(total.dtype) * total, below)
    return torch.searchsorted(cumulated, at[:, None], right=True)[:, 0]


class _LockStep:
    """One batch of answers; those that end leave it."""

    def __init__(
        self, pair: Pair, prompts: Sequence[Sequence[int]], behaviour: Behaviour, options: RolloutOptions, step: int
    ) -> None:
        self._pair, self._prompts, self._options = pair, prompts, options
        self._behaviour, self._update = behaviour, step
        self._models = [pair.student, pair.teacher] if behaviour.needs_teacher(step) else [pair.student]
        self._history = _History(len(prompts))

    def run(self, uniforms: Tensor) -> list[Rollout]:
        """Decode to the end; uniforms has shape (sequences, max_tokens)."""
        decode(
            [Decoder(model, self._prompts) for model in self._models],
            lambda logits, live, at: self._choose(logits, live, uniforms[live, at]),
            lambda _, tokens: tokens == self._end(),
            sequences=len(self._prompts),
            max_tokens=self._options.max_tokens,
        )
        return self._collect()

    def _choose(self, logits: Sequence[Tensor], live: Tensor, uniforms: Tensor) -> Tensor:
        """Draw the next token of the live sequences, and remember what the loss will want. Returns ids, (live,)."""
        student, *others = (self._pair.vocabulary.logprobs(part) for part in logits)
        teacher = others[0] if others else student
        blend = self._behaviour.blend(student, teacher, self._update)
        tokens = draw(blend.logprobs, uniforms)
        fields = {"tokens": tokens, "beta": blend.beta.float(), "kl_student": blend.kl_student.float()}
        size = self._options.support
        if size is not None:
            fields["support"] = top_support(student, size)
        fields["student"] = student if size is None else coarsen(student, fields["support"])
        if others:
            fields |= remember_teacher(teacher, fields.get("support"))
        self._history.append(live, fields)
        return tokens

    def _end(self) -> int:
        end = self._pair.vocabulary.end
        return -1 if end is None else end

    def _collect(self) -> list[Rollout]:
        rows = self._history.split()
        answers = [tuple(row["tokens"].tolist()) for row in rows]
        if len(self._models) == 1:
            sequences = list(zip(self._prompts, answers, strict=True))
            supports = [row.get("support") for row in rows]
            read = read_teacher(self._pair, sequences, supports, max_tokens=self._options.read_tokens)
            rows = [row | fields for row, fields in zip(rows, read, strict=True)]
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                token_ids=answer,
                finished=answer[-1] == self._end(),
                support=row.get("support"),
                teacher=row["teacher"],
                stats={name: row[name] for name in ("beta", "kl_student", "teacher_entropy")}
                | {"reverse_kl": reverse_kl(row["student"], row["teacher"])},
            )
            for prompt, answer, row in zip(self._prompts, answers, rows, strict=True)
        ]


class _History:
    """What was recorded of sequences that leave at different times."""

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences
        self._owners: list[Tensor] = []
        self._fields: list[dict[str, Tensor]] = []

    def append(self, live: Tensor, fields: dict[str, Tensor]) -> None:
        """Record one token of the live sequences: their numbers, and fields of shape (live, ...)."""
        self._owners.append(live)
        self._fields.append(fields)

    def split(self) -> list[dict[str, Tensor]]:
        """Return the fields of each sequence, of shape (tokens, ...)."""
        owners = torch.cat(self._owners)
        order = owners.argsort(stable=True)
        counts = owners.bincount(minlength=self._sequences).tolist()
        rows: list[dict[str, Tensor]] = [{} for _ in counts]
        for name in self._fields[0]:
            joined = torch.cat([fields[name] for fields in self._fields])[order]
            for row, part in zip(rows, joined.split(counts), strict=True):
                row[name] = part
        return rows


def remember_teacher(teacher: Tensor, support: Tensor | None) -> dict[str, Tensor]:
    """Return what is kept of the teacher's log-probabilities, shape (tokens, vocab), on a support or in full."""
    mass = teacher.exp()
    entropy = -(mass * teacher.clamp_min(-1e9)).sum(dim=-1)  # no 0 * inf
    kept = teacher if support is None else coarsen(teacher, support, mass=mass)
    return {"teacher": kept, "teacher_entropy": entropy}


@torch.no_grad()
def read_teacher(
    pair: Pair,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    supports: Sequence[Tensor | None],
    *,
    max_tokens: int = 4096,
) -> list[dict[str, Tensor]]:
    """Let the teacher read given answers, once, in place of decoding them in lock-step.

    Returns:
        Per sequence, ``teacher`` and ``teacher_entropy``.
    """
    rows: list[dict[str, Tensor]] = [{} for _ in sequences]
    for places in in_batches(sequences, max_tokens):
        logits = answer_logits(pair.teacher, pick(sequences, places))
        counts = [len(sequences[place][1]) for place in places]
        for place, part in zip(places, logits.split(counts), strict=True):
            rows[place] = remember_teacher(pair.vocabulary.logprobs(part), supports[place])
    return rows
