"""Between prompts, tokens and completions, for engines with a transformers tokenizer: chats, ids, stop strings."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
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
        self._read: dict[str, list[int]] = {}

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
            ids: Any = self._encode_text(prompt)
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

    def _encode_text(self, text: str) -> list[int]:
        """Return the ids of a text that is to be continued.

        An end that the tokenizer appends is taken off, and a begin that it adds to one in the text.
        """
        before, after = self._added
        ids = list(self.tokenizer(text)["input_ids"])
        if after and not self.ends.isdisjoint(after):
            ids = ids[: -len(after)]
        twice = before and ids[len(before) :][: len(before)] == before
        return ids[len(before) :] if twice else ids

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        whole, bare = (list(self.tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (True, False))
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
        return ([], []) if at is None else (whole[:at], whole[at + len(bare) :])

    def _encode_chat(self, messages: Any, name: str) -> list[int]:
        text = render_chat(self.tokenizer, messages, name=name, label=self.label, variables=self.chat_template_kwargs)
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

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of a completion so far, with or without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    def ends_with(self, stop: Iterable[str]) -> frozenset[int]:
        """Return the ids that end a completion: the model's own, and stop strings that are a special token's text."""
        return self.ends | {token for text in stop for token in self._hidden(text) if self._is_whole(text)}

    def shows_special(self, stop: Iterable[str]) -> bool:
        """Say whether a stop string holds a special token and more, so that it is only seen where those are shown."""
        return any(self._hidden(text) and not self._is_whole(text) for text in stop)

    def _hidden(self, text: str) -> list[int]:
        """Return the special tokens in a text: those that have no text when a completion is decoded."""
        if text not in self._read:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._read[text] = [token for token in ids if self._name(token)]
        return self._read[text]

    def _name(self, token: int) -> str:
        """Return the text of a special token; empty for any other."""
        return "" if self.decode([token]) else self.decode([token], special=True).strip()

    def _is_whole(self, text: str) -> bool:
        hidden = self._hidden(text)
        return len(hidden) == 1 and self._name(hidden[0]) == text.strip()

    def complete(self, ids: Sequence[int], stop: tuple[str, ...], logprob: float | None = None) -> Completion:
        """Return the finished completion that the generated ids are, with their log-probability where it is known."""
        ended = ids[-1] in self.ends_with(stop)
        kept = ids[:-1] if ended else ids
        text, cut = self._cut(kept, stop)
        reason: FinishReason = "stop" if ended or cut else "length"
        return Completion(text, tuple(ids), reason, logprob)

    def _cut(self, ids: Sequence[int], stop: tuple[str, ...]) -> tuple[str, bool]:
        """Return the text of ids up to the first stop string, and whether there is one."""
        text = self.decode(ids)
        if self.shows_special(stop):
            shown = self.decode(ids, special=True)
            first = min((at for at in map(shown.find, stop) if at >= 0), default=None)
            if first is None:
                return text, False
            hidden = {self._name(token) for token in ids} - {""}
            return reduce(lambda left, name: left.replace(name, ""), hidden, shown[:first]), True
        first = min((at for at in map(text.find, stop) if at >= 0), default=None)
        return text[:first], first is not None


def render_chat(
    tokenizer: Any,
    messages: Iterable[Any],
    name: str,
    label: str,
    variables: Mapping[str, Any],
    *,
    open_end: bool = True,
) -> str:
    """Return a chat as text, by the tokenizer's template.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns.
        name: what to call the chat in errors.
        label: what to call the model in errors.
        variables: of the template.
        open_end: whether the assistant is to go on.

    Raises:
        BackendError: there is no template, it refuses the chat, or it leaves out a turn's tool calls.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BackendError(
            f"{name} is a chat, but the tokenizer of {label} has no chat template: "
            "give prompts as text, or a tokenizer with a template"
        )
    from jinja2 import TemplateError

    turns = list(messages)
    try:
        text = _render(tokenizer, turns, variables, open_end=open_end)
        for turn in turns:
            if turn.get("tool_calls"):
                without = [other if other is not turn else _without_calls(turn) for other in turns]
                if _render(tokenizer, without, variables, open_end=open_end) == text:
                    raise BackendError(
                        f"{name} has tool calls, which the chat template of {label} leaves out: take a model whose "
                        "template knows tools, or write the calls into the content"
                    )
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        roles = ", ".join(dict.fromkeys(str(turn.get("role")) for turn in turns))
        raise BackendError(
            f"{name} does not fit the chat template of {label}: {error} (its roles: {roles}); leave out what the "
            "template does not know, such as data.system_prompt"
        ) from error
    return text


def _render(tokenizer: Any, turns: Sequence[Any], variables: Mapping[str, Any], *, open_end: bool) -> str:
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_end, **variables)
    return text


def _without_calls(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key != "tool_calls"}
