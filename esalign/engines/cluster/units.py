"""How a call is cut into units of work: rectangles of candidates x prompts, large ones first, small ones at the end."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

MOST = 1024  # completions of a unit: what is lost at most with the engine that has it
BLOCK = 256  # prompts that are sent together
PER_WORKER = 2  # a unit is so many times smaller than a worker's fair share of what is left


@dataclass(frozen=True)
class Unit:
    """Some candidates on some prompts. It holds all that its answer depends on, so any worker may do it, and again.

    Args:
        key: tells it from all other units, those of earlier calls too.
        candidates: indices, consecutive.
        prompts: indices, consecutive.
        request: what is asked; only who asks and who answers look into it.
    """

    key: tuple[int, int]
    candidates: range
    prompts: range
    request: Any = None

    @property
    def size(self) -> int:
        """Number of completions."""
        return len(self.candidates) * len(self.prompts)

    @property
    def blocks(self) -> range:
        """The blocks of prompts that hold its own."""
        return range(self.prompts.start // BLOCK, -(-self.prompts.stop // BLOCK))

    @property
    def places(self) -> range:
        """Where in these blocks, one after another, its own are.

        >>> unit = Unit((0, 0), range(1), range(300, 500))
        >>> unit.blocks, unit.places
        (range(1, 2), range(44, 244))
        """
        first = self.blocks.start * BLOCK
        return range(self.prompts.start - first, self.prompts.stop - first)


def cut(
    candidates: int, prompts: int, *, workers: int, fewest: int, by_prompt: bool = False, call: int = 0
) -> list[Unit]:
    """Cut a table of candidates x prompts into units.

    Each takes half of a worker's fair share of what is left ("guided self-scheduling"), so that there are few units and
    all workers nevertheless end at about the same time. It depends on these numbers alone, not on who is how fast: so
    the same call is cut the same way again, and engines that round by batch give the same.

    Args:
        candidates: number of candidates.
        prompts: number of prompts.
        workers: how many the call is cut for.
        fewest: completions of a unit, where as many are left; at most a worker's fair share.
        by_prompt: let each unit hold all candidates, as far as the limit allows, so that they meet the same engine at a
            prompt.
        call: the first part of the units' keys.

    >>> [(unit.candidates, unit.prompts) for unit in cut(4, 10, workers=1, fewest=8)]
    [(range(0, 2), range(0, 10)), (range(2, 3), range(0, 10)), (range(3, 4), range(0, 5)), (range(3, 4), range(5, 10))]
    """
    if by_prompt:
        turned = cut(prompts, candidates, workers=workers, fewest=max(fewest, min(candidates, MOST)), call=call)
        return [replace(unit, candidates=unit.prompts, prompts=unit.candidates) for unit in turned]
    fewest = min(fewest, -(-candidates * prompts // workers))
    parts = _rectangles(candidates, prompts, workers, fewest)
    return [Unit((call, number), *part) for number, part in enumerate(parts)]


def _rectangles(rows: int, columns: int, workers: int, fewest: int) -> Iterator[tuple[range, range]]:
    row = column = 0
    while row < rows and columns:
        left = (rows - row) * columns - column
        want = min(MOST, max(fewest, -(-left // (PER_WORKER * workers))))
        if column == 0 and want >= columns:
            taken = min(rows - row, want // columns)
            yield range(row, row + taken), range(columns)
            row += taken
            continue
        here = columns - column
        width = -(-here // -(-here // want))  # even parts of what is left of the row
        if want > BLOCK:  # of whole blocks, so that a worker is sent few
            width = min(here, min(-(-width // BLOCK), want // BLOCK) * BLOCK)
        yield range(row, row + 1), range(column, column + width)
        column = (column + width) % columns
        row += column == 0


def describe(unit: Unit) -> str:
    """Return what people call a unit.

    >>> describe(Unit((0, 0), range(2, 3), range(4, 8)))
    'prompts 4 to 7 of candidate 2'
    """
    parts = []
    for noun, numbers in (("prompt", unit.prompts), ("candidate", unit.candidates)):
        parts.append(f"{noun}s {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{noun} {numbers[0]}")
    return " of ".join(parts)
