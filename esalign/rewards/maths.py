"""The maths reward: is the final answer the right one, by math-verify."""

import functools
import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

PRELOAD = ("math_verify", "sympy")
"""Imported once, before the scoring processes are forked: it takes seconds."""

_NUMBER = re.compile(r"(?P<sign>[+-]?)[$€£]?(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?P<decimals>\.\d+)?")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = "\\boxed{"
_HASHES = re.compile(r"####\s*(\S[^\n]*)")
_STATED = re.compile(r"(?i)\banswer(?: is|:)[ *:]*")


def math_reward(completions: Sequence[str], answer: Sequence[Any]) -> list[float | None]:
    r"""Return 1.0 where the completion's final answer equals the right one mathematically, else 0.0.

    The final answer is what stands in the last ``\boxed{}``, else after the last ``####``, else after the last "answer
    is" or "answer:", else what math-verify finds in the whole text: the last formula or number.

    Args:
        completions: what the model wrote.
        answer: the right answers: numbers, or text such as ``"1,080"``, ``"\\frac{1}{2}"``, or a solution that ends in
            ``"#### 72"`` or ``"\\boxed{72}"``. None abstains.

    Raises:
        ValueError: a right answer in which there is no mathematics.
    """
    pairs = zip(completions, answer, strict=True)
    return [None if right is None else float(is_correct(text, str(right))) for text, right in pairs]


def is_correct(completion: str, answer: str) -> bool:
    """Say whether a completion's final answer equals the right one.

    Raises:
        ValueError: a right answer in which there is no mathematics.
    """
    given, right = final_answer(completion), final_answer(answer)
    given_number, right_number = as_number(given), as_number(right)
    if given_number is not None and right_number is not None:
        if given_number == right_number:
            return True
        if given_number.denominator == right_number.denominator == 1:
            return False  # beyond whole numbers, math-verify decides what rounding is allowed
    return _verify(given, right)


def final_answer(text: str) -> str:
    r"""Return the part of a text that holds its final answer, the whole text when nothing marks it.

    >>> final_answer("2 + 2 = 4, so \\boxed{4}.")
    '\\boxed{4}'
    >>> final_answer("She has 40 + 2.\n#### 42")
    '42'
    """
    text = text.rpartition("</think>")[2]
    if tagged := _TAGGED.findall(text):
        text = tagged[-1]
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    if marked := _HASHES.findall(text):
        return marked[-1].strip()
    stated = [match.start() for match in _STATED.finditer(text)]
    if stated and re.search(r"[\d\\]", text[stated[-1] :]):
        text = text[stated[-1] :]
    return text.strip()


def _last_boxed(text: str) -> str | None:
    r"""Return the last complete ``\boxed{...}``, which may hold further braces."""
    start = text.rfind(_BOX)
    while start >= 0:
        depth = 0
        for end in range(start + len(_BOX) - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start : end + 1]
        start = text.rfind(_BOX, 0, start)
    return None


def as_number(text: str) -> Fraction | None:
    r"""Return the number that a text is, or None when it is more or less than one plain number.

    >>> as_number("$1,080.50")
    Fraction(2161, 2)
    """
    if text.startswith(_BOX) and text.endswith("}"):
        text = text[len(_BOX) : -1]
    text = _STATED.sub("", text, count=1) if _STATED.match(text) else text
    text = text.strip().strip("*").replace("\\$", "$").replace("{,}", ",").removesuffix(".").removesuffix("**")
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    return Fraction(match["sign"] + match["whole"].replace(",", "") + (match["decimals"] or ""))


def _verify(given: str, right: str) -> bool:
    from math_verify import verify

    gold = _parse_right(right)
    # timeout_seconds: the library's own limit needs signals and so the main thread; the reward pool has a better one
    return bool(verify(list(gold), _parse(given), timeout_seconds=None))


@functools.lru_cache(maxsize=4096)
def _parse_right(right: str) -> tuple[Any, ...]:
    number = as_number(right)
    marked = "$" in right or _BOX in right
    formula = right if marked and number is None else f"${right if number is None else number}$"
    parsed = _parse(formula) or _parse(right)
    if not parsed:
        raise ValueError(f"there is no mathematics in the right answer {right!r:.80}")
    return tuple(parsed)


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn of the time limit that is not set
    return list(parse(text, parsing_timeout=None))
