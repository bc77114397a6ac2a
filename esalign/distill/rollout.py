"""Rollouts: completions of two models in lock-step, with what the teacher thought of every token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esalign.distill.behaviour import Behaviour
from esalign.distill.decoder import Decoder
from esalign.distill.divergence import coarsen, reverse_kl, top_support
from esalign.distill.forced import read_completions
from esalign.distill.vocabulary import SharedVocabulary
from esalign.engines.sampling import draw_uniforms, invert


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
        max_tokens: the most tokens of a completion.
        support: number of the student's likeliest tokens at which the teacher is remembered; None: the full vocabulary.
        sequences: completions decoded together.
        read_tokens: the most tokens that are read teacher-forced in one pass, where the teacher takes no part.
    """

    max_tokens: int
    support: int | None = 16
    sequences: int = 64
    read_tokens: int = 4096


@dataclass(frozen=True)
class Rollout:
    """One completion, with the teacher's judgement of the distribution at each of its tokens.

    Args:
        prompt_ids: what was completed.
        token_ids: the completion, the end of sequence included if there is one.
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

    def cpu(self) -> "Rollout":
        """Return it in main memory, as it is kept over generations."""
        support = None if self.support is None else self.support.cpu()
        stats = {name: values.cpu() for name, values in self.stats.items()}
        return replace(self, support=support, teacher=self.teacher.cpu(), stats=stats)


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
    """Complete every prompt once. Repeat prompts for several completions.

    The random stream of completion ``j`` depends on (seed, j) alone, so completions do not depend on how they are
    batched, but for rounding.

    Args:
        pair: the two models.
        prompts: token ids, each at least one.
        behaviour: who samples.
        options: how.
        step: the update that the behaviour's schedules are at.
        seed: of the random streams.
    """
    numbers = draw_uniforms(seed, len(prompts), options.max_tokens, np.float64)
    uniforms = torch.from_numpy(numbers).to(pair.student.device)  # (sequences, max_tokens)
    rollouts: list[Rollout] = []
    for first in range(0, len(prompts), options.sequences):
        part = slice(first, first + options.sequences)
        batch = _LockStep(pair, prompts[part], behaviour, options, step)
        rollouts += batch.run(uniforms[part])
    return rollouts


class _LockStep:
    """One batch of completions; those that end leave it."""

    def __init__(
        self, pair: Pair, prompts: Sequence[Sequence[int]], behaviour: Behaviour, options: RolloutOptions, step: int
    ) -> None:
        self._pair, self._prompts, self._options = pair, prompts, options
        self._behaviour, self._update = behaviour, step
        self._models = [pair.student, pair.teacher] if behaviour.needs_teacher(step) else [pair.student]
        self._history = _History(len(prompts))

    def run(self, uniforms: Tensor) -> list[Rollout]:
        """Decode to the end, all models being fed the same tokens; uniforms has shape (sequences, max_tokens)."""
        end, most = self._pair.vocabulary.end, self._options.max_tokens
        decoders = [Decoder(model, self._prompts) for model in self._models]
        logits = [decoder.read() for decoder in decoders]  # per model (live, rows of the head)
        live = torch.arange(len(self._prompts), device=uniforms.device)  # numbers of the sequences that go on, (live,)
        for at in range(most):
            tokens = self._choose(logits, live, uniforms[live, at])
            going = (tokens != (-1 if end is None else end)).nonzero()[:, 0]  # places among the live ones, (going,)
            if not len(going) or at + 1 == most:
                break
            if len(going) < len(live):
                live, tokens = live[going], tokens[going]
                for decoder in decoders:
                    decoder.keep(going)
            logits = [decoder.feed(tokens) for decoder in decoders]
        return self._collect()

    def _choose(self, logits: Sequence[Tensor], live: Tensor, uniforms: Tensor) -> Tensor:
        """Draw the next token of the live sequences, and remember what the loss will want. Returns ids, (live,)."""
        student, *others = (self._pair.vocabulary.logprobs(part) for part in logits)
        teacher = others[0] if others else student
        blend = self._behaviour.blend(student, teacher, self._update)
        tokens = invert(blend.logprobs.exp(), uniforms)
        fields = {"tokens": tokens, "beta": blend.beta.float(), "kl_student": blend.kl_student.float()}
        size = self._options.support
        if size is not None:
            fields["support"] = top_support(student, size)
        fields["student"] = student if size is None else coarsen(student, fields["support"])
        if others:
            fields |= remember_teacher(teacher, fields.get("support"))
        self._history.append(live, fields)
        return tokens

    def _collect(self) -> list[Rollout]:
        rows = self._history.split()
        completions = [tuple(row["tokens"].tolist()) for row in rows]
        if len(self._models) == 1:
            sequences = list(zip(self._prompts, completions, strict=True))
            supports = [row.get("support") for row in rows]
            read = _read_teacher(self._pair, sequences, supports, max_tokens=self._options.read_tokens)
            rows = [row | fields for row, fields in zip(rows, read, strict=True)]
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                token_ids=ids,
                finished=ids[-1] == self._pair.vocabulary.end,
                support=row.get("support"),
                teacher=row["teacher"],
                stats={name: row[name] for name in ("beta", "kl_student", "teacher_entropy")}
                | {"reverse_kl": reverse_kl(row["student"], row["teacher"])},
            )
            for prompt, ids, row in zip(self._prompts, completions, rows, strict=True)
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
def _read_teacher(
    pair: Pair,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    supports: Sequence[Tensor | None],
    *,
    max_tokens: int = 4096,
) -> list[dict[str, Tensor]]:
    """Let the teacher read given completions, once, in place of decoding them in lock-step.

    Returns:
        Per sequence, ``teacher`` and ``teacher_entropy``.
    """
    rows: list[dict[str, Tensor]] = [{} for _ in sequences]
    for place, logits in read_completions(pair.teacher, sequences, max_tokens):
        rows[place] = remember_teacher(pair.vocabulary.logprobs(logits), supports[place])
    return rows
