"""Student and teacher: checked against each other, the student made to learn, and judged."""

from typing import Any

import torch
from torch import Tensor

from esalign.config.distill import StudentSection
from esalign.distill.rollout import Pair
from esalign.distill.vocabulary import PROBES, SharedVocabulary
from esalign.engines.loading import LoadedModel, load_model
from esalign.errors import DistillationError
from esalign.protocols import Backend
from esalign.registry import load_backend
from esalign.seeds import Use, derive
from esalign.space.imports import import_peft


def make_pair(student: LoadedModel, teacher: LoadedModel) -> Pair:
    """Return the pair, if they have one vocabulary.

    Raises:
        DistillationError: the tokenizers differ, or a head is smaller than the tokenizer.
    """
    _refuse_different(student, teacher)
    size = max(student.tokenizer.get_vocab().values()) + 1
    for model in (student, teacher):
        if model.rows < size:
            raise DistillationError(
                f"{model.label} has {model.rows} output rows for {size} token ids of the tokenizer: it cannot judge "
                "all tokens; use models made for the same tokenizer"
            )
    ends = dict.fromkeys(token for token in (*student.ends, *teacher.ends) if token < size)
    return Pair(student.model, teacher.model, SharedVocabulary.of_one(size, list(ends)))


def _refuse_different(student: LoadedModel, teacher: LoadedModel) -> None:
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    advice = "distillation compares distributions over the same tokens, so take a teacher with the student's tokenizer"
    if ours != theirs:
        token = min((t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)), key=lambda t: (len(t), t))
        sides = ", ".join(
            f"{label} gives it {'id ' + str(vocab[token]) if token in vocab else 'no id'}"
            for label, vocab in ((student.label, ours), (teacher.label, theirs))
        )
        raise DistillationError(f"the tokenizers differ, first at {token!r} ({sides}): {advice}")
    for text in PROBES:
        one, other = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for model in (student, teacher))
        if list(one) != list(other):
            raise DistillationError(f"the tokenizers have the same tokens but cut {text!r} differently: {advice}")


def load_student(section: StudentSection, *, device: str, seed: int) -> tuple[LoadedModel, dict[str, Tensor]]:
    """Load the student and what learns in it: {name: parameter}, float32 for LoRA.

    Raises:
        DistillationError: it cannot be loaded, or has no layer of the wanted names.
    """
    adapter = section.adapter if section.tuning == "lora" else None
    if section.tuning == "full" and section.adapter is not None:
        raise DistillationError("student.adapter cannot be given with student.tuning 'full': merge it into the model")
    loaded = load_model("student", section.path, adapter, dtype=section.dtype, device=device)
    model = loaded.model
    if section.tuning == "full":
        model.requires_grad_(requires_grad=True)
    elif adapter is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    else:
        model = _with_new_adapter(loaded, section, seed=seed)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return LoadedModel(model, loaded.tokenizer, loaded.label), parameters


def _with_new_adapter(loaded: LoadedModel, section: StudentSection, *, seed: int) -> Any:
    peft = import_peft()
    targets = section.target_modules if isinstance(section.target_modules, str) else list(section.target_modules)
    lora = peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha or 2 * section.rank,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, Use.NEW_ADAPTER))  # peft draws A from the global generator
        try:
            return peft.get_peft_model(loaded.model, lora).eval()
        except ValueError as error:
            raise DistillationError(f"{loaded.label} has no layers {section.target_modules}: name its own") from error


def make_judge(student: LoadedModel, vocabulary: SharedVocabulary, *, sequences: int) -> Backend:
    """Return the engine that judges the student as it is at each call: the one that judges any other torch model.

    It ends a completion at every id that ends one of either model, as the student learns them as one event.

    Args:
        student: the model, which may go on learning between calls.
        vocabulary: of student and teacher.
        sequences: completions decoded together.
    """
    return load_backend("torch", model=student, space=None, ends=vocabulary.ends, max_rows=sequences)
