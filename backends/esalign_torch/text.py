"""Between prompts, tokens and answers: chat templates, detokenisation, stop strings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esalign.errors import BackendError
from esalign.types import Completion, FinishReason, Prompt

BROKEN = "\N{REPLACEMENT CHARACTER}"


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
            ids = self.tokenizer(prompt)["input_ids"]
        elif not isinstance(prompt, Sequence | torch.Tensor) and not hasattr(prompt, "__len__"):
            raise BackendError(f"{name} is of type {type(prompt).__name__}, expected text, chat messages or token ids")
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self._encode_chat(prompt, name)
        else:
            ids = self._check_ids(prompt, name)
        if not len(ids):
            raise BackendError(f"{name} is empty: a model needs at least one token to answer")
        return tuple(ids)

    def _encode_chat(self, messages: Any, name: str) -> list[int]:
        if not self.tokenizer.chat_template:
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

    def _check_ids(self, prompt: Any, name: str) -> list[int]:
        try:
            ids = [value.__index__() for value in prompt]
        except AttributeError:
            raise BackendError(
                f"{name} holds {type(prompt[0]).__name__}, expected text, chat messages or token ids"
            ) from None
        for value in ids:
            if not 0 <= value < self.vocab:
                raise BackendError(
                    f"{name} holds the token id {value}, but the vocabulary has ids 0 to {self.vocab - 1}"
                )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer so far, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def complete(self, ids: list[int], stop: tuple[str, ...]) -> Completion:
        """Return the finished answer that the generated ids are."""
        ended = ids[-1] in self.ends
        text = self.decode(ids[:-1] if ended else ids)
        cut = min((at for at in map(text.find, stop) if at >= 0), default=None)
        reason: FinishReason = "stop" if ended or cut is not None else "length"
        return Completion(text[:cut], tuple(ids), reason)


class StopStrings:
    """Finds out when an answer holds a stop string, without decoding every answer at every step.

    Only a token with the last character of a stop string in its own text can complete one. A token whose text is
    broken or invisible on its own (part of a character, a special token) might as well.
    """

    def __init__(self, codec: TextCodec, stop: tuple[str, ...], device: torch.device) -> None:
        self.codec = codec
        self.stop = stop
        self.may_complete = self._mark_tokens().to(device)

    def _mark_tokens(self) -> Tensor:
        """Return which ids may complete a stop string, shape (vocab,), bool."""
        last = {stop[-1] for stop in self.stop}
        if " " in last:  # decoders strip the blank before a word that stands alone
            return torch.ones(self.codec.vocab, dtype=torch.bool)
        pieces = self.codec.tokenizer.batch_decode([[token] for token in range(self.codec.vocab)])
        marks = [not piece or BROKEN in piece or not last.isdisjoint(piece) for piece in pieces]
        return torch.tensor(marks)

    def completed(self, ids: Sequence[int]) -> bool:
        """Tell whether the text of an answer holds a stop string."""
        text = self.codec.decode(ids)
        return any(stop in text for stop in self.stop)
