"""Demonstrations for the warm start: prompts and the answers to learn, in the tokens that an engine will see."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esalign.errors import DataError
from esalign.types import Example, Message

NOT_LEARNT = -100  # the label of tokens that are read and not learnt, as in transformers


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer to learn.

    Args:
        prompt: text, or chat messages.
        answer: text.
    """

    prompt: str | Sequence[Message]
    answer: str


def read_demonstrations(examples: Iterable[Example], column: str) -> list[Demonstration]:
    """Return the examples with the answers that a column holds.

    Raises:
        DataError: no example, or one without an answer or with a prompt that cannot be trained on.
    """
    found = [_demonstration(i, example, column) for i, example in enumerate(examples)]
    if not found:
        raise DataError("no demonstrations to train on, expected at least one example")
    return found


def _demonstration(index: int, example: Example, column: str) -> Demonstration:
    answer = example.columns.get(column)
    if not isinstance(answer, str) or not answer:
        known = ", ".join(sorted(example.columns)) or "none"
        raise DataError(
            f"example {index} has {answer!r} in column {column!r}, expected the answer's text; its columns: {known}"
        )
    if isinstance(example.prompt, str):
        return Demonstration(example.prompt, answer)
    messages = [message for message in example.prompt if isinstance(message, Mapping)]
    if not messages or len(messages) < len(example.prompt):
        raise DataError(f"the prompt of example {index} is token ids or empty, expected text or chat messages")
    return Demonstration(messages, answer)


def tokenize(demonstrations: Sequence[Demonstration], tokenizer: Any, *, max_length: int) -> list[dict[str, list[int]]]:
    """Return ``input_ids`` and ``labels`` of each demonstration; what is longer than max_length is cut.

    Prompt and answer are tokenised apart. An engine reads the prompt's tokens and continues them, so a token that
    spans the border of the two, which tokenising them together may give, would never be seen there.

    Raises:
        DataError: a chat without a template, or prompts so long that no answer is left within max_length.
    """
    rows = []
    for index, demonstration in enumerate(demonstrations):
        prompt, answer = _encode(demonstration, tokenizer, index)
        if len(prompt) < max_length:
            labels = [NOT_LEARNT] * len(prompt) + answer
            rows.append({"input_ids": (prompt + answer)[:max_length], "labels": labels[:max_length]})
    if not rows:
        raise DataError(
            f"all {len(demonstrations)} prompts have max_length ({max_length}) tokens or more, which leaves no room "
            "for answers: raise max_length"
        )
    return rows


def _encode(demonstration: Demonstration, tokenizer: Any, index: int) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, as an engine reads it, and of the answer with its end."""
    if isinstance(demonstration.prompt, str):
        prompt: list[int] = tokenizer(demonstration.prompt)["input_ids"]
        text = demonstration.answer
    else:
        asked, text = _render(demonstration, tokenizer, index)
        prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answer: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return prompt, answer if end is None or end in answer else [*answer, end]


def _render(demonstration: Demonstration, tokenizer: Any, index: int) -> tuple[str, str]:
    """Return the text of a chat up to where the model is to answer, and what follows there."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"example {index} is a chat, but the tokenizer has no chat template: give prompts as text")
    messages = list(demonstration.prompt)
    asked: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages += [{"role": "assistant", "content": demonstration.answer}]
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False)
    # A template may word the prompt otherwise once it is answered. The engine sees the unanswered one.
    return asked, whole.removeprefix(asked) if whole.startswith(asked) else demonstration.answer
