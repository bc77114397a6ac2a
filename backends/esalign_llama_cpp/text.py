"""Between prompts, tokens and answers, by the GGUF file's own vocabulary or by a Hugging Face tokenizer."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from esalign.errors import BackendError
from esalign.types import Completion, FinishReason, Prompt
from esalign_llama_cpp.model import GgufModel, Vocabulary

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer."""

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that belong around one."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """Return the ids of a chat, up to where the assistant's answer begins."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""


class GgufTokenizer:
    """The vocabulary and the chat template of the GGUF file."""

    def __init__(self, model: GgufModel) -> None:
        self._vocabulary = Vocabulary(model)
        self._template = model.chat_template
        self._label = str(model.path)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the file asks for."""
        return self._vocabulary.tokenize(text, special=True)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """Return the ids of a chat by the file's template."""
        if not self._template:
            raise BackendError(f"'{self._label}' has no chat template: give prompts as text, or a tokenizer with one")
        text = self._compiled.render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=self._vocabulary.name("bos"),
            eos_token=self._vocabulary.name("eos"),
            **options,
        )
        return self._vocabulary.tokenize(text, special=False)

    @cached_property
    def _compiled(self) -> Any:
        """The template, compiled as transformers does it."""
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: Any, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=False, indent=indent)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: dt.datetime.now().strftime(form)  # noqa: DTZ005  (local)
        return environment.from_string(self._template or "")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without control tokens."""
        pieces = self._vocabulary.pieces
        text = b"".join(pieces[token] for token in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._vocabulary.strips_blank else text


class HuggingFaceTokenizer:
    """A transformers tokenizer.

    Args:
        folder: where it lies, or its id on the hub.

    Raises:
        BackendError: it cannot be loaded.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise BackendError(f"the tokenizer '{folder}' cannot be loaded: {reason}") from error
        self._label = str(folder)

    @property
    def end(self) -> int | None:
        """The end-of-sequence id."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the tokenizer itself adds."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """Return the ids of a chat by the tokenizer's template."""
        if not self._tokenizer.chat_template:
            raise BackendError(
                f"the tokenizer '{self._label}' has no chat template: give prompts as text, or a tokenizer with one"
            )
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **options
        )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class TextCodec:
    """Encodes the three kinds of prompt, and makes answers of generated ids.

    Args:
        tokenizer: one of the two.
        vocab: number of ids.
        ends: ids that end an answer.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab: int, ends: frozenset[int], chat_template_kwargs: Mapping[str, Any]
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.ends = ends
        self._chat_options = dict(chat_template_kwargs)

    def encode(self, prompt: Prompt, name: str = "the prompt") -> tuple[int, ...]:
        """Return the ids of a prompt: text and chats by the tokenizer, ids as they are.

        Raises:
            BackendError: the prompt is empty or of no known kind, or does not fit the chat template.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode_text(prompt)
        elif not hasattr(prompt, "__len__"):
            raise BackendError(f"{name} is of type {type(prompt).__name__}, expected text, chat messages or token ids")
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self._encode_chat(prompt, name)
        else:
            ids = self._read_ids(prompt, name)
        if not ids:
            raise BackendError(f"{name} is empty: a model needs at least one token to answer")
        if not 0 <= min(ids) <= max(ids) < self.vocab:
            raise BackendError(
                f"{name} holds the token id {max(ids) if min(ids) >= 0 else min(ids)}, but the model's vocabulary has "
                f"ids 0 to {self.vocab - 1}"
            )
        return tuple(ids)

    def _encode_chat(self, messages: Any, name: str) -> list[int]:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.encode_chat(messages, self._chat_options)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise BackendError(f"{name} does not fit the chat template: {error}") from error

    @staticmethod
    def _read_ids(prompt: Any, name: str) -> list[int]:
        try:
            return [value.__index__() for value in prompt]
        except (AttributeError, TypeError):
            raise BackendError(
                f"{name} holds {type(prompt[0]).__name__}, expected text, chat messages or token ids"
            ) from None

    def complete(self, ids: Sequence[int], stop: tuple[str, ...]) -> Completion:
        """Return the finished answer that the generated ids are."""
        ended = ids[-1] in self.ends
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        cut = min((at for at in map(text.find, stop) if at >= 0), default=None)
        reason: FinishReason = "stop" if ended or cut is not None else "length"
        return Completion(text[:cut], tuple(ids), reason)


class StopStrings:
    """Finds out when an answer holds a stop string, without decoding every answer at every step.

    Only a token with the last character of a stop string in its own text can complete one. A token whose text is
    broken, blank or invisible on its own might as well, as its neighbours change what is seen of it.
    """

    def __init__(self, codec: TextCodec, stop: tuple[str, ...]) -> None:
        self._codec = codec
        self._stop = stop
        self._last = {text[-1] for text in stop}
        self._may_complete: dict[int, bool] = {}

    def completed(self, ids: Sequence[int]) -> bool:
        """Tell whether the text of an answer holds a stop string."""
        token = ids[-1]
        if token not in self._may_complete:
            piece = self._codec.tokenizer.decode([token])
            shown = bool(piece) and BROKEN not in piece and piece == piece.strip()
            self._may_complete[token] = not shown or not self._last.isdisjoint(piece)
        if not self._may_complete[token]:
            return False
        text = self._codec.tokenizer.decode(ids)
        return any(stop in text for stop in self._stop)
