"""Between prompts, tokens and answers, for engines with a transformers tokenizer: chats, ids, stop strings."""

from collections.abc import Mapping, Sequence
from typing import Any

from esalign.errors import BackendError
from esalign.types import Completion, FinishReason, Prompt


class TextCodec:
    """What the tokenizer does for the engine.

    Args:
        tokenizer: a transformers tokenizer.
        vocab: number of rows of the model's embedding; ids are below it.
        ends: ids that end an answer.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
        label: the model's name, for error messages.
    """

    def __init__(
        self, tokenizer: Any, *, vocab: int, ends: frozenset[int], chat_template_kwargs: Mapping[str, Any], label: str
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.ends = ends
        self.chat_template_kwargs = dict(chat_template_kwargs)
        self.label = label

    def encode(self, prompt: Prompt, name: str = "the prompt") -> tuple[int, ...]:
        """Return the ids of a prompt: text with the tokenizer's own special tokens, chats by template, ids as they are.

        Raises:
            BackendError: the prompt is empty or of no known kind, or the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            ids: Any = self.tokenizer(prompt)["input_ids"]
        elif not hasattr(prompt, "__len__") or not hasattr(prompt, "__getitem__"):
            raise BackendError(f"{name} is of type {type(prompt).__name__}, expected text, chat messages or token ids")
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self._encode_chat(prompt, name)
        else:
            ids = prompt
        if not len(ids):
            raise BackendError(f"{name} is empty: a model needs at least one token to answer")
        return tuple(self.check_ids(ids, name))

    def _encode_chat(self, messages: Any, name: str) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise BackendError(
                f"{name} is a chat, but the tokenizer of model '{self.label}' has no chat template: "
                "give prompts as text, or a tokenizer with a template"
            )
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise BackendError(f"{name} does not fit the chat template of model '{self.label}': {error}") from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def check_ids(self, ids: Any, name: str) -> list[int]:
        """Return token ids as plain integers.

        Raises:
            BackendError: something that is no id of the model.
        """
        try:
            checked = [value.__index__() for value in ids]
        except (AttributeError, TypeError):
            kind = type(ids[0]).__name__ if len(ids) else type(ids).__name__
            raise BackendError(f"{name} holds {kind}, expected text, chat messages or token ids") from None
        wrong = next((value for value in checked if not 0 <= value < self.vocab), None)
        if wrong is not None:
            raise BackendError(f"{name} holds the token id {wrong}, but the vocabulary has ids 0 to {self.vocab - 1}")
        return checked

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer so far, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def complete(self, ids: Sequence[int], stop: tuple[str, ...]) -> Completion:
        """Return the finished answer that the generated ids are."""
        ended = ids[-1] in self.ends
        text = self.decode(ids[:-1] if ended else ids)
        cut = min((at for at in map(text.find, stop) if at >= 0), default=None)
        reason: FinishReason = "stop" if ended or cut is not None else "length"
        return Completion(text[:cut], tuple(ids), reason)
