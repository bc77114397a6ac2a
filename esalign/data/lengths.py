"""Prompts that a model cannot read: found before a run begins, with their rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from esalign.data.examples import Dataset
from esalign.data.notes import Note
from esalign.errors import BackendError, DataError
from esalign.types import Example, Prompt


def keep_fitting(
    data: Dataset,
    encode: Callable[[Prompt], Sequence[int]],
    *,
    most: int | None,
    reason: str,
    too_long: Literal["refuse", "drop"],
) -> Dataset:
    """Encode every prompt once, so that one that cannot be read is found at the start, not in some generation.

    Args:
        data: the problems.
        encode: from a prompt to its token ids, as the engine does it.
        most: the most tokens that a prompt may have; None for no limit.
        reason: where that limit comes from and how to move it, in words.
        too_long: whether to refuse longer prompts or to leave them out.

    Raises:
        DataError: a prompt that the engine refuses, one that is too long, or none that is short enough.
    """
    lengths = [_count(example, encode) for example in data.examples]
    long = [] if most is None else [index for index, length in enumerate(lengths) if length > most]
    if not long:
        return data
    first = data.examples[long[0]]
    found = f"{len(long):,} of {len(data.examples):,} prompts have more than {most} tokens ({reason})"
    named = f"{first.where or 'the first'} has {lengths[long[0]]}"
    if too_long == "refuse" or len(long) == len(data.examples):
        raise DataError(f"{found}, such as {named}: shorten them, or leave them out with data.too_long: drop")
    kept = tuple(example for example, length in zip(data.examples, lengths, strict=True) if length <= (most or 0))
    return replace(data, examples=kept, notes=(*data.notes, Note("dropped", f"{found}, such as {named}")))


def _count(example: Example, encode: Callable[[Prompt], Sequence[int]]) -> int:
    try:
        return len(encode(example.prompt))
    except BackendError as error:
        raise DataError(f"{example.where}: {error}" if example.where else str(error)) from error
