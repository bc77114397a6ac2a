"""Student and teacher from a configuration: loaded, checked against each other, and the student made to learn."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esalign.assets import adapter_path, model_path
from esalign.config.distill import StudentSection
from esalign.distill.rollout import Pair
from esalign.distill.vocabulary import share_vocabulary
from esalign.errors import DistillationError
from esalign.seeds import Use, derive
from esalign.types import Prompt


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Args:
        model: a causal language model, for inference, on its device.
        tokenizer: its tokenizer.
        label: for messages, e.g. ``student 'embedded'``.
    """

    model: Any
    tokenizer: Any
    label: str

    @property
    def rows(self) -> int:
        """Number of rows of the output head."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def ends(self) -> list[int]:
        """Ids that end a sequence, the model's own first choice first."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list | tuple) else [ends]
        known = [int(end) for end in ends if end is not None]
        own = self.tokenizer.eos_token_id
        if own is None:
            return known
        return [own, *(end for end in known if end != own)] if own in known or not known else known


def load_model(role: str, path: str, adapter: str | None, *, dtype: str, device: str) -> Loaded:
    """Load a causal language model for inference, with a LoRA adapter when one is given.

    Args:
        role: ``student`` or ``teacher``.
        path: Hugging Face id, folder, or ``embedded``.
        adapter: PEFT folder or hub id, ``embedded``, or None.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        DistillationError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    label = f"{role} '{path}'"
    kind = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if not isinstance(kind, str | torch.dtype):
        raise DistillationError(f"{role}.dtype is {dtype!r}, expected auto, float32, bfloat16 or float16")
    try:
        with _no_progress_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(model_path(path), dtype=kind)
            tokenizer = AutoTokenizer.from_pretrained(model_path(path))
            if adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, adapter_path(adapter))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DistillationError(f"{label} cannot be loaded: {first}") from error
    model.requires_grad_(requires_grad=False)
    return Loaded(model.eval().to(choose_device(device)), tokenizer, label)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def choose_device(device: str) -> torch.device:
    """Return the device of a name; auto is the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DistillationError(f"device is {device!r}, expected auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DistillationError(f"device is {device!r}, but torch sees no GPU: use cpu, or install torch with CUDA")
    return chosen


def make_pair(student: Loaded, teacher: Loaded) -> Pair:
    """Return the pair, if they have one vocabulary.

    Raises:
        DistillationError: they have not.
    """
    vocabulary = share_vocabulary(
        tokenizers=(student.tokenizer, teacher.tokenizer),
        rows=(student.rows, teacher.rows),
        ends=(student.ends, teacher.ends),
        labels=(student.label, teacher.label),
    )
    return Pair(student.model, teacher.model, vocabulary)


def load_student(section: StudentSection, *, device: str, seed: int) -> tuple[Loaded, dict[str, Tensor]]:
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
    return Loaded(model, loaded.tokenizer, loaded.label), parameters


def _with_new_adapter(loaded: Loaded, section: StudentSection, *, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = section.target_modules if isinstance(section.target_modules, str) else list(section.target_modules)
    lora = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha or 2 * section.rank,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, Use.NEW_ADAPTER))  # peft draws A from the global generator
        try:
            return get_peft_model(loaded.model, lora).eval()
        except ValueError as error:
            raise DistillationError(f"{loaded.label} has no layers {section.target_modules}: name its own") from error


def save_student(student: Loaded, section: StudentSection, folder: Path) -> Path:
    """Write what was learnt: a PEFT folder, or with full tuning the whole model and its tokenizer."""
    student.model.save_pretrained(folder)
    if section.tuning == "full":
        student.tokenizer.save_pretrained(folder)
    return folder


def encode(student: Loaded, prompt: Prompt, *, max_tokens: int) -> tuple[int, ...]:
    """Return a prompt's ids, rendered by the student's tokenizer; both models read the same.

    Raises:
        DistillationError: an empty or too long prompt, or a chat for a tokenizer without a template.
    """
    if isinstance(prompt, str):
        ids = student.tokenizer(prompt)["input_ids"]
    elif prompt and isinstance(prompt[0], Mapping):
        ids = _encode_chat(student, prompt)
    else:
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]  # no messages, so ids
    if not 0 < len(ids) <= max_tokens:
        raise DistillationError(
            f"a prompt has {len(ids)} tokens, expected 1 to {max_tokens}: drop it, or raise training.max_prompt_tokens"
        )
    return tuple(ids)


def _encode_chat(student: Loaded, messages: Sequence[Any]) -> list[int]:
    if not student.tokenizer.chat_template:
        raise DistillationError(
            f"the prompts are chats, but the tokenizer of {student.label} has no chat template: use text prompts"
        )
    text = student.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids: list[int] = student.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
