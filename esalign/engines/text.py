"""Between prompts, tokens and completions, for engines with a transformers tokenizer: chats, ids, stop strings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esalign.errors import BackendError
from esalign.types import Completion, FinishReason, Prompt


class TextCodec:
    """What the tokenizer does for the engine.

    Args:
        tokenizer: a transformers tokenizer.
        vocab: number of rows of the model's embedding; ids are below it.
        ends: ids that end a completion.
        context: the most tokens of a prompt and its completion; None for no limit.
        remedy: what to do when they are more.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
        label: for error messages, e.g. ``model 'embedded'``.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab: int,
        ends: Iterable[int],
        context: int | None,
        remedy: str = "shorten the prompt or lower max_tokens",
        chat_template_kwargs: Mapping[str, Any] | None,
        label: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.ends = frozenset(ends)
        self.context = context
        self.remedy = remedy
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.label = label

    def encode_prompts(self, prompts: Sequence[Prompt], max_tokens: int) -> list[tuple[int, ...]]:
        """Return the ids of prompts that are to be completed with at most so many tokens.

        Raises:
            BackendError: see `encode`; or prompt and completion do not fit the context.
        """
        if isinstance(prompts, str | bytes | Mapping):
            raise BackendError(
                f"prompts is of type {type(prompts).__name__}, expected a list of prompts: [{prompts!r:.40}]"
            )
        encoded = [self.encode(prompt, f"prompt {j}") for j, prompt in enumerate(prompts)]
        for j, ids in enumerate(encoded):
            self.check_context(f"prompt {j}", len(ids), max_tokens)
        return encoded

    def check_context(self, name: str, prompt: int, completion: int) -> None:
        """Refuse more tokens than fit the context.

        Raises:
            BackendError: there are more.
        """
        if self.context is not None and prompt + completion > self.context:
            raise BackendError(
                f"{name} has {prompt} tokens and its completion may have {completion}, but {self.label} has a context "
                f"of {self.context}: {self.remedy}"
            )

    def encode(self, prompt: Prompt, name: str = "the prompt") -> tuple[int, ...]:
        """Return the ids of a prompt: text with the tokenizer's own special tokens, chats by template, ids as they are.

        Raises:
            BackendError: the prompt is empty or of no known kind, or the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            ids: Any = self.tokenizer(prompt)["input_ids"]
        elif isinstance(prompt, Mapping):
            raise BackendError(f"{name} is a single message, expected text, token ids or a list of messages")
        elif not hasattr(prompt, "__len__") or not hasattr(prompt, "__getitem__"):
            raise BackendError(f"{name} is of type {type(prompt).__name__}, expected text, chat messages or token ids")
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self._encode_chat(prompt, name)
        else:
            ids = prompt
        if not len(ids):
            raise BackendError(f"{name} is empty: a model needs at least one token to complete")
        return tuple(self.check_ids(ids, name))

    def _encode_chat(self, messages: Any, name: str) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise BackendError(
                f"{name} is a chat, but the tokenizer of {self.label} has no chat template: "
                "give prompts as text, or a tokenizer with a template"
            )
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise BackendError(f"{name} does not fit the chat template of {self.label}: {error}") from error
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
        """Return the text of a completion so far, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def complete(self, ids: Sequence[int], stop: tuple[str, ...]) -> Completion:
        """Return the finished completion that the generated ids are."""
        ended = ids[-1] in self.ends
        text = self.decode(ids[:-1] if ended else ids)
        cut = min((at for at in map(text.find, stop) if at >= 0), default=None)
        reason: FinishReason = "stop" if ended or cut is not None else "length"
        return Completion(text[:cut], tuple(ids), reason)
