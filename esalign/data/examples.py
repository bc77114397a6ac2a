"""Rows of columns -> problems: which column is the prompt, which the answer, and what is put around the prompt."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from esalign.config.sections import Source
from esalign.data.gym import PREFIX, generate_rows
from esalign.data.instructions import NAME as INSTRUCTIONS
from esalign.data.instructions import generate_instructions
from esalign.data.notes import Note, part_of
from esalign.data.prompts import apply_template, as_chat, as_prompt, refuse_surrogates, template_fields
from esalign.data.rows import Row, read_rows
from esalign.errors import DataError
from esalign.registry import did_you_mean
from esalign.seeds import Use, generator
from esalign.types import Example

ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "instruction", "input"),
    "answer": ("answer", "solution", "ground_truth", "target", "output", "response"),
}
"""Names under which a role's column is found, the first that is there wins."""

FOLLOWS: Mapping[str, tuple[str, ...]] = {"instruction": ("input", "context")}
"""What stands below a prompt's column in the prompt: Alpaca's and Dolly's rows pose a task and give its input apart."""

PART_OF_PROMPTS = ("input", "context", "passage", "choices", "options", "system", "history", "tools", "image", "images")
"""Columns that a model mostly must read; where no prompt holds them, the user is reading."""

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
        notes: what was dropped, changed, cut or assumed, for the user to see.
    """

    name: str
    examples: tuple[Example, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    @property
    def alias_notes(self) -> tuple[Note, ...]:
        """What was assumed of its columns."""
        text = "column {!r} of '{}' is taken for the {}; data.columns.{} says otherwise"
        return tuple(Note("assumed", text.format(name, self.name, role, role)) for role, name in self.aliases.items())


def load_examples(source: str, *, size: int | None = None, seed: int = 0, **reading: Any) -> list[Example]:
    """Return problems; `load_dataset` with the fields of `Source` as arguments.

    Raises:
        DataError: see `load_dataset`.
    """
    return list(load_dataset(Source(source=source, **reading), size=size, seed=seed).examples)


def load_dataset(
    source: Source,
    *,
    size: int | None = None,
    seed: int = 0,
    revise: Callable[[Row], Row] | None = None,
    key: str = "size",
) -> Dataset:
    """Return problems of a source.

    Args:
        source: where from, and how to read.
        size: number of problems: a random sample, or as many as a task is to generate. None is all, in their order.
        seed: decides the sample, or what a task generates.
        revise: gives a row the columns that its problem is made of; None leaves rows as they are.
        key: what the size is called where the user set it, for errors.

    Raises:
        DataError: nothing there, unreadable, a column that is not there, an empty prompt, or fewer rows than asked.
    """
    if size is not None and size < 1:
        raise DataError(f"{key} of '{source.source}' is {size}, expected at least 1")
    rows = source_rows(source, size=size, seed=seed)
    if revise is not None:
        rows = [revise(row) for row in rows]
    if size is None or is_task(source):
        return build_dataset(rows, source)
    if len(rows) < size:
        raise DataError(f"'{source.source}' has {len(rows)} rows, fewer than {key} {size}: lower it")
    chosen = generator(seed, Use.SUBSETS).choice(len(rows), size=size, replace=False).tolist()
    data = build_dataset([rows[index] for index in chosen], source, numbers=chosen)
    if size == len(rows):
        return data
    drawn = Note("cut", f"{part_of(size, rows)} of '{source.source}' are taken, drawn by the seed")
    return replace(data, notes=(*data.notes, drawn))


def is_task(source: Source) -> bool:
    """Say whether problems are generated, so that there is no end of them but the task's own."""
    return source.source == INSTRUCTIONS or source.source.startswith(PREFIX)


def source_rows(source: Source, *, size: int | None, seed: int, start: int = 0) -> list[Row]:
    """Return the raw rows of a source: all of a file or data set, ``size`` (default 500) from ``start`` of a task."""
    if not is_task(source):
        return read_rows(source.source, config=source.config, split=source.split, options=source.options)
    for name, value in (("config", source.config), ("split", source.split)):
        if value:
            raise DataError(f"'{source.source}' is generated, so it has no {name}: leave data.{name} out")
    if source.source == INSTRUCTIONS:
        return generate_instructions(options=source.options, size=size or 500, seed=seed, start=start)
    return generate_rows(source.source, options=source.options, size=size or 500, seed=seed, start=start)


def build_dataset(rows: Sequence[Row], source: Source, *, numbers: Sequence[int] | None = None) -> Dataset:
    """Make problems of raw rows.

    Args:
        rows: at least one.
        source: how to read them.
        numbers: the row's number in the source, for errors; None counts from 0.

    Raises:
        DataError: a column that is not there, or a row without a usable prompt.
    """
    names = {role: _find_column(role, rows[0], source) for role in ("prompt", "answer")}
    _check_names(source, rows[0])
    reading = _Reading(source, names, _find_follower(rows, names["prompt"], source))
    examples = tuple(
        _example(row, f"'{source.source}' row {number}", reading)
        for row, number in zip(rows, numbers or range(len(rows)), strict=True)
    )
    found = {role: name for role, name in names.items() if name and name != role and role not in source.columns}
    label = ":".join(part for part in (source.source, source.config, source.split) if part)
    return Dataset(label, examples, found, tuple(_notes(rows, reading)))


@dataclass
class _Reading:
    """How rows are read, and in how many of them something was changed or left out, by column or key."""

    source: Source
    names: Mapping[str, str | None]
    follows: str | None
    joined: int = 0
    unanswered: int = 0
    empty: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def _notes(rows: Sequence[Row], reading: _Reading) -> Iterable[Note]:
    """Yield what the user should know of how rows became problems."""
    source, names, follows = reading.source, reading.names, reading.follows
    of = f"of '{source.source}'"
    if follows:
        count = part_of(reading.joined, rows)
        yield Note(
            "assumed",
            f"column {follows!r} {of} follows {names['prompt']!r} in the prompt, in {count}; data.columns.prompt or "
            "data.template says otherwise",
        )
    for name in _unread(rows, source, names, follows):
        count = part_of(sum(_is_filled(row.get(name)) for row in rows), rows)
        yield Note("dropped", f"column {name!r} {of}, filled in {count}, is in no prompt; data.template can name it")
    for name, number in reading.empty.items():
        yield Note("changed", f"{{{name}}} of data.template is left empty in {part_of(number, rows)} {of}: it is null")
    for name, number in sorted(reading.left_out.items()):
        yield Note("dropped", f"{name!r} of {number:,} messages {of}, which no chat template reads")
    if reading.unanswered:
        yield Note(
            "dropped", f"the answer is null in {part_of(reading.unanswered, rows)} {of}; rewards may leave them out"
        )


def _is_filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None and value not in ([], {})


def _find_follower(rows: Sequence[Row], prompt: str | None, source: Source) -> str | None:
    """Return the column whose text stands below the prompt's own, where nobody said what the prompt is."""
    if "prompt" in source.columns or prompt is None:
        return None
    named = {*(template_fields(source.template) if source.template else ()), *source.columns.values()}
    candidates = (name for name in FOLLOWS.get(prompt, ()) if name not in named)
    return next((name for name in candidates if any(_is_text(row.get(name)) for row in rows)), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _unread(rows: Sequence[Row], source: Source, names: Mapping[str, str | None], follows: str | None) -> list[str]:
    """Return columns with something in them that belongs into prompts, and that neither prompt nor reward is given."""
    used = {*names.values(), follows, *source.columns.values()}
    used |= {*(template_fields(source.template) if source.template else ())}
    return [name for name in PART_OF_PROMPTS if name not in used and any(_is_filled(row.get(name)) for row in rows)]


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


def _example(row: Row, where: str, reading: _Reading) -> Example:
    source, names, follows = reading.source, reading.names, reading.follows
    renamed = {**{role: name for role, name in names.items() if name}, **source.columns}
    values = {role: _dig(row, name, missing=_MISSING) for role, name in renamed.items()}
    for role, value in values.items():
        if value is _MISSING:
            raise DataError(f"{where}: column {renamed[role]!r} is missing")
    columns = {name: value for name, value in {**row, **values}.items() if name not in ("prompt", *RESERVED)}
    prompt = values["prompt"]
    if follows and isinstance(prompt, str) and _is_text(row.get(follows)):
        prompt = f"{prompt}\n\n{row[follows]}"
        reading.joined += 1
    if source.template is not None:
        prompt = apply_template(prompt, columns, source.template, where, reading.empty)
    read = as_prompt(prompt, where, reading.left_out)
    if source.chat or source.system_prompt is not None:
        read = as_chat(read, source.system_prompt, where)
    reading.unanswered += columns.get("answer", "") is None
    refuse_surrogates(read, f"{where}: the prompt")
    refuse_surrogates(columns.get("answer"), f"{where}: the answer")
    return Example(read, columns, where)
