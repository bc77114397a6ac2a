"""Right answers as the data hold them -> the texts that completions are compared with."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from esalign.errors import RewardError


def as_text(reward: str, answer: Any) -> str:
    """Return a right answer as text.

    Raises:
        RewardError: a list or a mapping, whose comparison with a text would always fail.
        ValueError: NaN or infinity.
    """
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"there is no mathematics in the right answer {answer}, expected text or a finite number")
    if isinstance(answer, Mapping) or (not isinstance(answer, str) and hasattr(answer, "__len__")):
        kind = "a mapping" if isinstance(answer, Mapping) else "a list"
        raise RewardError(
            f"reward {reward!r} needs one text or number as 'answer', but a problem's answer is {kind}, "
            f"{answer!r:.80}: set data.columns.answer to a column that holds one, or write a reward for {kind}"
        )
    return str(answer)


def spellings(reward: str, answer: Any) -> tuple[str, ...]:
    """Return the texts that an answer may be written as: itself, and for a number with and without exponent or ".0".

    >>> spellings("exact-match", 1e-05), spellings("exact-match", 7.0)
    (('1e-05', '0.00001'), ('7.0', '7'))

    Raises:
        RewardError: see `as_text`.
    """
    text = as_text(reward, answer)
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return (text,)
    positional = format(Decimal(text), "f")
    return tuple(dict.fromkeys((text, positional, positional.removesuffix(".0"))))
