"""What a prompt begins for the model: chat templates of reasoning models end in an opened ``<think>``."""

from collections.abc import Sequence

from esalign.protocols import Backend
from esalign.types import Prompt

TAGS = ("<think>", "<thinking>", "<thought>", "<reasoning>")
BEGINNINGS = tuple(tag + space for tag in TAGS for space in ("\n\n", "\n", " ", ""))


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
