"""Demonstrations for the warm start: prompts and the answers to learn, in the tokens that an engine will see."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from esalign.config.sft import SftData
from esalign.data import Dataset, Note, load_dataset
from esalign.data.examples import ALIASES
from esalign.data.notes import part_of
from esalign.engines.text import TextCodec, render_chat
from esalign.errors import BackendError, DataError
from esalign.types import Example, Message

NOT_LEARNT = -100  # the label of tokens that are read and not learnt, as in transformers
ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT's files name them


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer to learn.

    Args:
        prompt: text, or chat messages.
        answer: text.
        where: what to call it in errors.
    """

    prompt: str | Sequence[Message]
    answer: str
    where: str = "a demonstration"


def load_demonstrations(data: SftData, *, seed: int) -> Dataset:
    """Return problems with the answers to learn, from any file that TRL's SFTTrainer takes.

    Of ``messages`` (or ShareGPT's ``conversations``), the last turn is the answer and those before it are the prompt;
    of ``prompt`` and ``completion``, the completion is the answer.

    Raises:
        DataError: see `esalign.data.load_dataset`.
    """
    prompts = (*ALIASES["prompt"], "messages", "conversations")
    asked = data.columns.get("prompt")

    def revise(row: dict[str, Any]) -> dict[str, Any]:
        revised = dict(row)
        column = asked or next((name for name in prompts if row.get(name) is not None), None)
        if column in ("messages", "conversations") and isinstance(row.get(column), list | tuple) and row[column]:
            *before, last = [_as_turn(turn) for turn in row[column]]
            revised |= {"answer": [last], ("prompt" if asked is None else asked): before}
        elif "completion" in row and not any(name in row for name in ("answer", data.columns.get("answer"))):
            revised["answer"] = row["completion"]
        return revised

    return load_dataset(data, size=data.size, seed=seed, revise=revise, key="data.size")


def _as_turn(turn: Any) -> Any:
    """Return a turn of ShareGPT's form, ``{"from": "human", "value": ...}``, as role and content."""
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    return {"role": ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}


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
    where = example.where or f"example {index}"
    answer = _as_answer(example.columns.get(column), where)
    if not isinstance(answer, str) or not answer:
        known = ", ".join(sorted(example.columns)) or "none"
        raise DataError(
            f"{where} has {answer!r} in column {column!r}, expected the answer's text; its columns: {known}"
        )
    if isinstance(example.prompt, str):
        return Demonstration(example.prompt, answer, where)
    messages = [message for message in example.prompt if isinstance(message, Mapping)]
    if not messages or len(messages) < len(example.prompt):
        raise DataError(f"the prompt of {where} is token ids or empty, expected text or chat messages")
    return Demonstration(messages, answer, where)


def _as_answer(value: Any, where: str) -> Any:
    """Return the text of an answer that is a number or a chat completion; anything else as it is."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real) and not isinstance(value, bool):
        return np.format_float_positional(float(value), trim="0")
    if not isinstance(value, list | tuple):
        return value
    last = value[0] if len(value) == 1 and isinstance(value[0], Mapping) else {}
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str) or last.get("tool_calls"):
        raise DataError(
            f"{where}: the answer is {value!r:.80}, expected text or one message of the assistant with text"
        )
    return last["content"]


def tokenize(
    demonstrations: Sequence[Demonstration], tokenizer: Any, *, max_length: int
) -> tuple[list[dict[str, list[int]]], list[Note]]:
    """Return ``input_ids`` and ``labels`` of the demonstrations; what is longer than max_length is cut.

    Prompt and answer are tokenised apart. An engine reads the prompt's tokens and continues them, so a token that
    spans the border of the two, which tokenising them together may give, would never be seen there.

    Returns:
        A row for each demonstration whose prompt leaves room for an answer; and how many are left out or cut.

    Raises:
        DataError: a chat that the template does not take, or prompts so long that no answer is left within max_length.
    """
    rows, out, cut = [], [], []
    for demonstration, (prompt, answer) in zip(demonstrations, _encode_all(demonstrations, tokenizer), strict=True):
        if len(prompt) >= max_length:
            out.append(demonstration)
            continue
        if len(prompt) + len(answer) > max_length:
            cut.append(demonstration)
        labels = [NOT_LEARNT] * len(prompt) + answer
        rows.append({"input_ids": (prompt + answer)[:max_length], "labels": labels[:max_length]})
    if not rows:
        raise DataError(
            f"all {len(demonstrations)} prompts have max_length ({max_length}) tokens or more, which leaves no room "
            "for answers: raise max_length"
        )
    notes = []
    if out:
        text = f"{part_of(len(out), demonstrations)}: their prompts have max_length ({max_length}) tokens or more"
        notes.append(Note("dropped", f"{text}, such as {out[0].where}"))
    if cut:
        text = f"the answers of {part_of(len(cut), demonstrations)} at max_length ({max_length}) tokens"
        notes.append(Note("cut", f"{text}: their ends are not learnt, such as {cut[0].where}"))
    return rows, notes


def _encode_all(demonstrations: Sequence[Demonstration], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each prompt, as an engine reads it, and of the answer with its end."""
    end = tokenizer.eos_token_id
    ends = () if end is None else (end,)
    codec = TextCodec(
        tokenizer, vocab=len(tokenizer), ends=ends, context=None, chat_template_kwargs=None, label="the model"
    )
    pairs = []
    for demonstration in demonstrations:
        try:
            prompt = codec.encode(demonstration.prompt, demonstration.where)
            text = _answer_behind(demonstration, tokenizer)
        except BackendError as error:
            raise DataError(str(error)) from error
        answer: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        pairs.append((list(prompt), answer if end is None or end in answer else [*answer, end]))
    return pairs


def _answer_behind(demonstration: Demonstration, tokenizer: Any) -> str:
    """Return what follows in the text of a chat where the model is to answer."""
    if isinstance(demonstration.prompt, str):
        return demonstration.answer
    asked = _render(demonstration, demonstration.prompt, tokenizer, open_end=True)
    answered: Message = {"role": "assistant", "content": demonstration.answer}
    whole = _render(demonstration, [*demonstration.prompt, answered], tokenizer, open_end=False)
    # A template may word the prompt otherwise once it is answered. The engine sees the unanswered one.
    return whole.removeprefix(asked) if whole.startswith(asked) else demonstration.answer


def _render(demonstration: Demonstration, turns: Sequence[Message], tokenizer: Any, *, open_end: bool) -> str:
    return render_chat(tokenizer, turns, name=demonstration.where, label="the model", variables={}, open_end=open_end)
