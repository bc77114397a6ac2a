"""Rows of columns -> problems: which column is the prompt, which the answer, and what is put around the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from esalign.config.sections import Source
from esalign.data.gym import PREFIX, generate_rows
from esalign.data.rows import Row, read_rows
from esalign.errors import DataError
from esalign.registry import did_you_mean
from esalign.seeds import Use, generator
from esalign.types import Example, Message, Prompt

ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "instruction", "input"),
    "answer": ("answer", "solution", "ground_truth", "target", "output", "response"),
}
"""Names under which a role's column is found, the first that is there wins."""

VERL_ANSWER = "reward_model.ground_truth"
"""Where verl's files keep the answer: inside a column that holds a mapping."""

RESERVED = ("prompts", "completions")
"""Arguments of every reward, so no columns."""


@dataclass(frozen=True)
class Dataset:
    """Problems, and how they were read.

    Args:
        name: the source, config and split included.
        examples: the problems.
        aliases: role -> the column that was taken for it without being told so, for the user to see.
    """

    name: str
    examples: tuple[Example, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)


def load_examples(source: str, *, size: int | None = None, seed: int = 0, **reading: Any) -> list[Example]:
    """Return problems; `load_dataset` with the fields of `Source` as arguments.

    Raises:
        DataError: see `load_dataset`.
    """
    return list(load_dataset(Source(source=source, **reading), size=size, seed=seed).examples)


def load_dataset(source: Source, *, size: int | None = None, seed: int = 0) -> Dataset:
    """Return problems of a source.

    Args:
        source: where from, and how to read.
        size: number of problems: a random sample, or as many as a task is to generate. None is all, in their order.
        seed: decides the sample, or what a task generates.

    Raises:
        DataError: nothing there, unreadable, a column that is not there, an empty prompt, or fewer rows than asked.
    """
    if size is not None and size < 1:
        raise DataError(f"size of '{source.source}' is {size}, expected at least 1")
    rows = source_rows(source, size=size, seed=seed)
    if size is not None and not is_task(source):
        if len(rows) < size:
            raise DataError(f"'{source.source}' has {len(rows)} rows, fewer than the {size} that were asked for")
        chosen = generator(seed, Use.SUBSETS).choice(len(rows), size=size, replace=False)
        rows = [rows[index] for index in chosen]
    return build_dataset(rows, source)


def is_task(source: Source) -> bool:
    """Say whether problems are generated, so that there is no end of them but the task's own."""
    return source.source.startswith(PREFIX)


def source_rows(source: Source, *, size: int | None, seed: int, start: int = 0) -> list[Row]:
    """Return the raw rows of a source: all of a file or data set, ``size`` (default 500) from ``start`` of a task."""
    if not is_task(source):
        return read_rows(source.source, config=source.config, split=source.split, options=source.options)
    for name, value in (("config", source.config), ("split", source.split)):
        if value:
            raise DataError(f"'{source.source}' is generated, so it has no {name}: leave data.{name} out")
    return generate_rows(source.source, options=source.options, size=size or 500, seed=seed, start=start)


def build_dataset(rows: Sequence[Row], source: Source) -> Dataset:
    """Make problems of raw rows.

    Raises:
        DataError: a column that is not there, or a row without a usable prompt.
    """
    names = {role: _find_column(role, rows[0], source) for role in ("prompt", "answer")}
    _check_names(source, rows[0])
    examples = tuple(_example(row, index, names, source) for index, row in enumerate(rows))
    found = {role: name for role, name in names.items() if name and name != role and role not in source.columns}
    label = ":".join(part for part in (source.source, source.config, source.split) if part)
    return Dataset(label, examples, found)


def _find_column(role: str, row: Row, source: Source) -> str | None:
    if role in source.columns:
        return source.columns[role]
    name = next((alias for alias in ALIASES[role] if alias in row), None)
    if name is None and role == "answer":
        return VERL_ANSWER if _dig(row, VERL_ANSWER) is not None else None
    if name is None:
        raise DataError(
            f"'{source.source}' has no column for the {role}: looked for {', '.join(ALIASES[role])}, "
            f"found {', '.join(row)}; say which with data.columns.{role}"
        )
    return name


def _check_names(source: Source, row: Row) -> None:
    """Refuse names of columns that are not there, or that would hide an argument of the reward."""
    for role, name in source.columns.items():
        if _dig(row, name, missing=_MISSING) is _MISSING:
            hint = did_you_mean(name, row)
            raise DataError(f"'{source.source}' has no column {name!r} for {role!r}{hint}; columns: {', '.join(row)}")
    for name in {*row, *source.columns} & set(RESERVED):
        if name in source.columns or name not in source.columns.values():
            raise DataError(f"'{source.source}' has a column {name!r}, an argument of every reward: rename it")


_MISSING = object()


def _dig(row: Row, name: str, missing: Any = None) -> Any:
    """Return a column, or what a dotted name finds inside the mapping that a column holds."""
    value: Any = row
    for part in (name,) if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return missing
        value = value[part]
    return value


def _example(row: Row, index: int, names: Mapping[str, str | None], source: Source) -> Example:
    where = f"'{source.source}' row {index}"
    renamed = {**{role: name for role, name in names.items() if name}, **source.columns}
    values = {role: _dig(row, name, missing=_MISSING) for role, name in renamed.items()}
    for role, value in values.items():
        if value is _MISSING:
            raise DataError(f"{where}: column {renamed[role]!r} is missing")
    columns = {name: value for name, value in {**row, **values}.items() if name not in ("prompt", *RESERVED)}
    prompt = _apply_template(values["prompt"], columns, source.template, where)
    return Example(_with_system(as_prompt(prompt, where), source.system_prompt, where), columns)


def _apply_template(prompt: Any, columns: Row, template: str | None, where: str) -> Any:
    if template is None:
        return prompt
    if not isinstance(prompt, str):
        raise DataError(f"{where}: data.template needs text prompts, these are {type(prompt).__name__}")
    fields = {**columns, "prompt": prompt}
    for name in template_fields(template):
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise DataError(f"data.template names {{{name}}}{hint}; columns: {', '.join(fields)}")
    return template.format(**fields)


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


def _with_system(prompt: Prompt, system_prompt: str | None, where: str) -> Prompt:
    if system_prompt is None:
        return prompt
    system: Message = {"role": "system", "content": system_prompt}
    if isinstance(prompt, str):
        user: Message = {"role": "user", "content": prompt}
        return (system, user)
    messages = [message for message in prompt if isinstance(message, dict)]
    if not messages:
        raise DataError(f"{where}: a prompt of token ids cannot take data.system_prompt")
    if messages[0]["role"] == "system":
        raise DataError(f"{where}: the messages have a system message already: leave data.system_prompt out")
    return (system, *messages)


def as_prompt(value: Any, where: str) -> Prompt:
    """Return a column's value as a prompt: text, chat messages or token ids.

    Args:
        value: text, a list of mappings with text under ``role`` and ``content``, or a list of integers.
        where: what to call it in errors.

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
    messages = tuple(_as_message(item, f"{where}, message {index}") for index, item in enumerate(value))
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{where}: the last message is the assistant's, expected one for it to answer")
    return messages


def _as_message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected a mapping with role and content, got {type(item).__name__}")
    for key in ("role", "content"):
        if not isinstance(item.get(key), str):
            raise DataError(f"{where}: expected text under {key!r}, got {item.get(key)!r:.80}")
    return {"role": item["role"], "content": item["content"]}
