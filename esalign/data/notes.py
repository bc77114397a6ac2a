"""What a user is told of his data: what was dropped, changed, cut or assumed, with counts."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """One thing that happened to the data on its way into a run.

    Args:
        kind: ``dropped``: rows or columns that no prompt holds; ``changed``: text that is not what the file has;
            ``cut``: rows that a size leaves out; ``assumed``: what the configuration does not say.
        text: in words, with counts, and how to have it otherwise.
    """

    kind: Literal["dropped", "changed", "cut", "assumed"]
    text: str


def part_of(count: int, rows: Sized) -> str:
    """Return '20 of 240 rows'.

    >>> part_of(1200, range(2400))
    '1,200 of 2,400 rows'
    """
    return f"{count:,} of {len(rows):,} rows"
