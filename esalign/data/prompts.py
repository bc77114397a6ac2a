"""From a column's value to a prompt: text, chat messages or token ids, and what a configuration puts around it."""

from collections import Counter
from collections.abc import Mapping
from string import Formatter
from typing import Any, cast

from esalign.errors import DataError
from esalign.registry import did_you_mean
from esalign.types import Message, Prompt

TURN_PARTS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What chat templates read of a message beside role and content."""


def as_prompt(value: Any, where: str, left_out: Counter[str] | None = None) -> Prompt:
    """Return a column's value as a prompt: text, chat messages or token ids.

    Args:
        value: text, a list of mappings with text under ``role`` and ``content``, or a list of integers.
        where: what to call it in errors.
        left_out: counts what messages hold that no chat template reads.

    Raises:
        DataError: anything else, or nothing in it.
    """
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: the prompt is empty")
        return value
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: the prompt is {type(value).__name__}, expected text or a list of chat messages")
    if not value:
        raise DataError(f"{where}: the prompt is an empty list")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return tuple(value)
    messages = tuple(as_message(item, f"{where}, message {index}", left_out) for index, item in enumerate(value))
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{where}: the last message is the assistant's, expected one for it to answer")
    return messages


def as_message(item: Any, where: str, left_out: Counter[str] | None = None) -> Message:
    """Return a turn of a chat with all that a chat template may read of it; see `as_prompt`."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected a mapping with role and content, got {type(item).__name__}")
    held = {key: value for key, value in item.items() if value is not None}  # files of columns hold every key
    content = _join_parts(held.get("content", "" if held.get("tool_calls") else None))
    for key, text in (("role", held.get("role")), ("content", content)):
        if not isinstance(text, str):
            raise DataError(f"{where}: expected text under {key!r}, got {text!r:.80}")
    if left_out is not None:
        left_out.update(held.keys() - {"role", "content", *TURN_PARTS})
    parts = {key: held[key] for key in TURN_PARTS if key in held}
    return cast("Message", {"role": held["role"], "content": content, **parts})


def _join_parts(content: Any) -> Any:
    """Return the text of content that is written as a list of parts, all of them texts; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(content) else content


def as_chat(prompt: Prompt, system_prompt: str | None, where: str) -> Prompt:
    """Return a text as a chat, with a system message first where one is given; chats and token ids stay as they are.

    Raises:
        DataError: a system message for a chat that has one already, or for token ids.
    """
    if isinstance(prompt, str):
        user: Message = {"role": "user", "content": prompt}
        prompt = (user,)
    if system_prompt is None:
        return prompt
    turns = [message for message in prompt if isinstance(message, dict)]
    if not turns:
        raise DataError(f"{where}: a prompt of token ids cannot take data.system_prompt")
    if turns[0]["role"] == "system":
        raise DataError(f"{where}: the messages have a system message already: leave data.system_prompt out")
    system: Message = {"role": "system", "content": system_prompt}
    return (system, *turns)


def refuse_surrogates(value: Any, where: str) -> None:
    r"""Refuse text that no file and no tokenizer can hold: ``"\ud83d"`` in JSON, without its other half.

    Raises:
        DataError: naming the character.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ascii(value[error.start])[1:-1]
            raise DataError(
                f"{where} holds {half}, half of a character (a lone surrogate), expected Unicode text: mend the row"
            ) from None
    elif isinstance(value, Mapping):
        for inner in value.values():
            refuse_surrogates(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            refuse_surrogates(inner, where)


def apply_template(prompt: Any, columns: Mapping[str, Any], template: str, where: str, empty: Counter[str]) -> str:
    """Put a template around a text prompt; a column without a value (null) leaves its place empty, and is counted.

    Raises:
        DataError: a prompt that is no text, a column that is not there, or a format that does not fit its value.
    """
    if not isinstance(prompt, str):
        raise DataError(f"{where}: data.template needs text prompts, these are {type(prompt).__name__}")
    fields = {**columns, "prompt": prompt}
    for name in template_fields(template):
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise DataError(f"data.template names {{{name}}}{hint}; columns: {', '.join(fields)}")
        if fields[name] is None:
            empty[name] += 1
            fields[name] = ""
    try:
        return template.format(**fields)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        used = ", ".join(f"{name} = {fields[name]!r:.60}" for name in template_fields(template) if name != "prompt")
        raise DataError(
            f"{where}: data.template does not fit its columns ({used}): {error}; write {{name}} alone for a column as "
            "it is"
        ) from None


def template_fields(template: str) -> list[str]:
    r"""Return the names in braces of a template.

    >>> template_fields("{question} Answer in \\boxed{{}}.")
    ['question']

    Raises:
        DataError: a brace that is not closed, or not doubled where a brace is meant.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"data.template cannot be read: {error}; write {{{{ and }}}} for braces") from None
    names = [name for _, name, _, _ in parts if name is not None]
    for name in names:
        if not name.isidentifier():
            raise DataError(
                f"data.template holds {{{name}}}, expected a column's name; write {{{{ and }}}} for braces, "
                "as in \\boxed{{}}"
            )
    return names
