"""Where the rollouts of gradient-free distillation come from: a blend of two models, or the engine itself."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from esalign.assets import model_path
from esalign.distill.behaviour import Behaviour, student_alone
from esalign.distill.divergence import top_support
from esalign.distill.forced import read_completions
from esalign.distill.rollout import Pair, Rollout, RolloutOptions, remember_teacher, roll_out
from esalign.distill.vocabulary import PROBES, SharedVocabulary
from esalign.engines.loading import LoadedModel, list_ends, load_model
from esalign.engines.text import TextCodec
from esalign.errors import DistillationError
from esalign.protocols import Backend, Space
from esalign.types import Array, Sampling

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class BlendedRollouts:
    """Completions of a behaviour of student and teacher, the student being base model and mean.

    Args:
        pair: the models; the student carries a LoRA adapter of the space.
        space: what a mean means.
        behaviour: who samples.
        options: how.
    """

    pair: Pair
    space: Space
    behaviour: Behaviour
    options: RolloutOptions

    @property
    def vocabulary(self) -> SharedVocabulary:
        """The vocabulary of the pair."""
        return self.pair.vocabulary

    def draw(self, mean: Array, prompts: Sequence[TokenIds], *, step: int, seed: int) -> list[Rollout]:
        """Set the student to the mean, a search vector of shape (dim,), and roll out; the teacher runs once."""
        set_student(self.pair.student, self.space, mean)
        return roll_out(self.pair, prompts, self.behaviour, self.options, step=step, seed=seed)

    def draw_alone(self, mean: Array, prompts: Sequence[TokenIds], *, seed: int) -> list[Rollout]:
        """Set the student to the mean, and let it sample alone."""
        return replace(self, behaviour=student_alone()).draw(mean, prompts, step=0, seed=seed)


@dataclass(frozen=True)
class EngineRollouts:
    """Completions of the mean by the engine alone; the teacher reads them afterwards. It takes no second student.

    The student's own distribution is not known here, so the support is the teacher's likeliest tokens.

    Args:
        backend: the engine.
        teacher: the teacher.
        vocabulary: what both share.
        options: how completions are drawn and read.
    """

    backend: Backend
    teacher: Any
    vocabulary: SharedVocabulary
    options: RolloutOptions

    @torch.no_grad()
    def draw(self, mean: Array, prompts: Sequence[TokenIds], *, step: int, seed: int) -> list[Rollout]:  # noqa: ARG002  # no schedule
        """Let the engine complete at temperature 1, and the teacher read."""
        sampling = Sampling(max_tokens=self.options.max_tokens, temperature=1.0, seed=seed)
        [completions] = self.backend.generate(mean[None], prompts, sampling)
        drawn = [(p, c.token_ids, c.finish_reason) for p, c in zip(prompts, completions, strict=True) if c.token_ids]
        sequences = [(prompt, completion) for prompt, completion, _ in drawn]
        fields: list[dict[str, Tensor]] = [{} for _ in sequences]
        for place, logits in read_completions(self.teacher, sequences, self.options.read_tokens):
            teacher = self.vocabulary.logprobs(logits)  # (tokens, vocab)
            support = top_support(teacher, self.options.support or self.vocabulary.size)
            fields[place] = {"support": support, **remember_teacher(teacher, support)}
        return [
            Rollout(
                prompt_ids=prompt,
                token_ids=completion,
                finished=reason == "stop",
                support=kept["support"],
                teacher=kept["teacher"],
                stats={"teacher_entropy": kept["teacher_entropy"]},
            )
            for (prompt, completion, reason), kept in zip(drawn, fields, strict=True)
        ]

    def draw_alone(self, mean: Array, prompts: Sequence[TokenIds], *, seed: int) -> list[Rollout]:
        """The same: no help is given here."""
        return self.draw(mean, prompts, step=0, seed=seed)


RolloutSource: TypeAlias = BlendedRollouts | EngineRollouts
"""Draws completions that all candidates will be judged on, with the teacher's distribution at every token."""


@torch.no_grad()
def set_student(student: Any, space: Space, vector: Array) -> None:
    """Write a search vector's factors, shape (dim,), into a model that carries the space's adapter."""
    for module in space.fold(vector).modules:
        layer = student.get_submodule(f"base_model.model.{module.name}")
        layer.lora_A["default"].weight.copy_(torch.from_numpy(module.A))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(module.B))


def load_adapted_student(path: str, space: Space, *, dtype: str, device: str) -> LoadedModel:
    """Load a base model with the adapter of a space."""
    if path.endswith(".gguf"):
        raise DistillationError(
            f"rollouts with a budget need the student in transformers, but the model is '{path}': name the original in "
            "fitness.options.student, or set fitness.options.budget to 0"
        )
    with tempfile.TemporaryDirectory() as folder:
        space.save_pretrained(np.zeros(space.dim), folder)
        return load_model("student", path, folder, dtype=dtype, device=device)


def vocabulary_of_engine(backend: Backend, teacher: LoadedModel, student: str | None) -> SharedVocabulary:
    """Return what an engine and a teacher share, judged by how both cut texts into tokens.

    Args:
        backend: the engine.
        teacher: the teacher.
        student: the engine's model, whose end ids are read where transformers can.

    Raises:
        DistillationError: they cut them differently, or the teacher's head is too small.
    """
    size = max(teacher.tokenizer.get_vocab().values()) + 1
    codec = TextCodec(
        teacher.tokenizer, vocab=size, ends=teacher.ends, context=None, chat_template_kwargs=None, label=teacher.label
    )
    for text in PROBES:
        ours, theirs = backend.encode(text), codec.encode(text)
        if tuple(ours) != theirs:
            raise DistillationError(
                f"the engine and {teacher.label} cut {text!r} into different tokens, {list(ours)[:6]} and "
                f"{list(theirs)[:6]} ...: take a teacher with the student's tokenizer"
            )
    if teacher.rows < size:
        raise DistillationError(f"{teacher.label} has {teacher.rows} output rows for {size} token ids of its tokenizer")
    ends = [*_ends(student), *teacher.ends]
    return SharedVocabulary.of_one(size, list(dict.fromkeys(end for end in ends if end < size)))


def _ends(student: str | None) -> tuple[int, ...]:
    """Return the end ids of a model by its configuration alone; none where transformers knows no such model."""
    if student is None or student.endswith(".gguf"):
        return ()
    from transformers import GenerationConfig

    try:
        return list_ends(GenerationConfig.from_pretrained(model_path(student)))
    except OSError:
        return ()
