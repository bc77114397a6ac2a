"""The maths reward: is the final answer the right one. Numbers are compared here, formulas by math-verify."""

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from esalign.rewards.answers import as_text
from esalign.rewards.final import Final, bare_words, choice_of, clauses_of, final_answer, number_of, words_of
from esalign.rewards.lists import last_formula, values_in
from esalign.rewards.number import ABBREVIATED, Number, read_based, read_number, same_number
from esalign.rewards.plain import plain, typeset

PRELOAD = ("math_verify", "sympy")
"""Imported once, before the scoring processes are forked: it takes seconds."""

_CHOICE = re.compile(r"\(?([A-J])\)?")
_WORDS = re.compile(r"[^\W\d_]{4,}(?:[ '-][^\W\d_]+)*|(?:[^\W\d_]+[ '-])+[^\W\d_]+|yes|no")
_HALF_DAY = re.compile(r"(:\d\d)([ap]m)$")
_OTHER_HALF = {"am": "pm", "pm": "am"}
_FACTORIAL = re.compile(r"\d\s?!\s*\$?$")
_TWO_NUMBERS = re.compile(r"\$?-?\d+,\s?-?\d{1,2}\$?")  # 3,7: German for 3.7, or 3 and 7
_BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{\s*([A-Za-z])\s*\}|\\mathrm\s*\{\s*([ei])\s*\}")
_SIGNS = (  # what math-verify leaves out or stops at -> what it reads
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r" \\pi "),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\(?:lor|vee)(?![A-Za-z])"), ","),
    (re.compile(r"(?<=[,+])\s*(?:\\[lc]?dots[bcm]?(?![A-Za-z])|\.{3}|…)"), r" \\Xi "),
)
_RELATION = re.compile(r"[<>≤≥≠≡∈∣|\\]|\bmod\b")
_FORMULA = re.compile(r"(?<!\\)\$|\\[(\[]|\\begin\b")
_EQUALS = re.compile(r"(?<![\\<>!])=")
_MATRIX = re.compile(r"(?:\\left\s*\S)?\s*\\begin\b.*\\end\s*\{\w+\}(?:\s*\\right\s*[^\s.])?", re.DOTALL)
_NAMES = (
    r"(?:[cdkm]m|m(?=[\^²³/])|in|ft|yd|mi|k?g|mg|lbs?|oz|min|hr|rad"
    r"|(?:(?:milli|centi|deci|kilo)?(?:met(?:er|re)|gram|lit(?:er|re))|mile|yard|inch|foot|feet|unit|second|minute|hour|day"
    r"|year|degree|radian|dollar|cent|pound|ounce)(?:e?s)?)"
)
_POWER = r"(?:\s?\^\s?\{?[1-4]\}?|[²³])?"
_SIZE = (
    rf"(?:(?:square|cubic|sq\.?|cu\.?)\s+)?{_NAMES}{_POWER}(?:\s?(?:/|per\s)\s?(?:s|h|{_NAMES})(?![A-Za-z]){_POWER})?"
)
_UNIT = re.compile(  # after a formula, where math-verify takes cm^2 for c times m squared
    r"(?:\s|~|\\[,;: ])*(?<![A-Za-z\\])"
    rf"(?:\\(?:text|mathrm|mbox|textrm|operatorname)\s*\{{[\s~]*{_SIZE}[\s~]*\}}{_POWER}|{_SIZE}|mph)"
    r"(?=[\s.$]*$|[.;!?]\s)"
)
_LAST_LETTERS = re.compile(  # which math-verify may take for a unit: \pi r^2 h, 2ab
    rf"(?:[\d}}]|\s)\s*(?:[A-Za-z]|(?!{ABBREVIATED}(?![A-Za-z]))[A-Za-z]{{2,3}})[\s.$]*$"
)
_EXACT_DIGITS = 50
_LONGEST_BOX = 300  # characters: sympy takes long for longer repetitions, or recurses too deeply
_REPETITION = re.compile(r"(\S[^$]{0,19}?)\1{59,}")  # in a formula: it takes as long, and no answer is meant
_RELATIVE = 1e-6


def math_reward(completions: Sequence[str], answer: Sequence[Any], *, evaluate: bool = False) -> list[float | None]:
    r"""Return 1.0 where the completion's final answer equals the right one mathematically, else 0.0.

    The final answer is what stands in the last ``\boxed{}``, else after the last ``####``, else after the last "answer
    is" or "answer:", else the last number or formula. Where the right answer is a number, an expression that must still
    be evaluated, such as ``80 + 75``, is not an answer: a model that repeats the question would be right.

    Args:
        completions: what the model wrote.
        answer: the right answers: numbers, or text such as ``"1,080"``, ``"\\frac{1}{2}"``, ``"B"``, or a solution that
            ends in ``"#### 72"`` or ``"\\boxed{72}"``. None abstains.
        evaluate: count expressions that must still be evaluated.

    Raises:
        RewardError: a right answer that is a list or a mapping.
        ValueError: a right answer without a letter or digit.
    """
    pairs = zip(completions, answer, strict=True)
    return [
        None if right is None else float(is_correct(text, as_text("math", right), evaluate=evaluate))
        for text, right in pairs
    ]


def is_correct(completion: str, answer: str, *, evaluate: bool = False) -> bool:
    """Say whether a completion's final answer equals the right one.

    Raises:
        ValueError: a right answer without a letter or digit.
    """
    right, given = _read_right(answer), final_answer(completion)
    if isinstance(right, str):
        return _is_same_text(given, right, answer)
    number = number_of(given)
    if number is not None and same_number(number, right):
        return True
    written = final_answer(answer).text
    return bool(_TWO_NUMBERS.fullmatch(written) and _same_values(given, written)) or (
        evaluate and _verify(given, answer)
    )


def _is_same_text(given: Final, right: str, answer: str) -> bool:
    """Say whether a final answer equals a right one that is no number: a choice, words, or a formula."""
    if choice := _CHOICE.fullmatch(plain(right).strip()):
        return choice_of(given) == choice[1]
    if (based := read_based(right)) is not None:
        return read_based(given.text) == based or bare_words(right).partition("_")[0] in words_of(given)
    if given.text.strip() == right.strip():
        return True
    words = bare_words(right)
    if not _FACTORIAL.search(right) and words in words_of(given):
        return True
    if (time := _HALF_DAY.search(words)) and time[1] + _OTHER_HALF[time[2]] in bare_words(given.text):
        return False
    return not _WORDS.fullmatch(right) and (_verify(given, answer) or _same_values(given, right))


def _same_values(given: Final, right: str) -> bool:
    """Say whether both list the same values, in any order."""
    wanted = values_in(right)
    found = values_in(last_formula(given.text) if given.place == "text" else given.text) if wanted else []
    if not wanted or len(wanted) != len(found):
        return False
    for value in wanted:
        equal = next((one for one in found if is_correct(f"\\boxed{{{one}}}", value)), None)
        if equal is None:
            return False
        found.remove(equal)
    return True


@functools.lru_cache(maxsize=4096)
def _read_right(answer: str) -> Number | str:
    """Return a right answer's number, or its text where it is none."""
    final = final_answer(answer)
    if _FACTORIAL.search(final.text):
        return final.text
    number = read_number(final.text)
    if number is None and final.place == "stated" and not _RELATION.search(final.text):
        number = number_of(final)  # of "72 apples, because ..."
    return final.text if number is None else number


def _verify(given: Final, answer: str) -> bool:
    from math_verify import verify

    formulas = dict.fromkeys((*_formulas(given), *_formulas(_without_unit(given))))
    units = not _ends_in_variable(answer)
    right = list(_parse_right(answer, units=units))
    found = [value for one in formulas for value in _parse(one, units=units)]
    if (number := number_of(given)) is not None:
        found.append(_quantity(number))
    pairs = [(one, other) for one in right for other in found if _is_quantity(one) and _is_quantity(other)]
    if pairs:
        return any(_equal_quantities(one, other) for one, other in pairs)
    # timeout_seconds: the library's own limit needs signals and so the main thread; the reward pool has a better one
    return bool(verify(right, found, timeout_seconds=None))


def _quantity(number: Number) -> Any:
    from sympy import Float, Rational

    value = Rational(number.value.numerator, number.value.denominator) / (100 if number.percent else 1)
    return Float(value, _EXACT_DIGITS) if number.place else value


def _is_quantity(value: Any) -> bool:
    """Say whether what math-verify read is a number, be it written as an expression."""
    return bool(getattr(value, "is_number", False) and getattr(value, "is_finite", False))


def _equal_quantities(one: Any, other: Any) -> bool:
    """Compare two numbers: exactly where both are exact, else within `_RELATIVE` of their size."""
    from sympy import Float

    one, other = one.doit(), other.doit()
    if one == other:
        return True
    if one.is_Rational and other.is_Rational:
        return False
    tolerance = _RELATIVE if one.has(Float) or other.has(Float) else 10.0 ** (10 - _EXACT_DIGITS)
    left, right = one.evalf(_EXACT_DIGITS), other.evalf(_EXACT_DIGITS)
    return bool(abs(left - right) <= tolerance * abs(left))


def _without_unit(final: Final) -> Final:
    """Return a final answer without the unit at its end, where something is left."""
    return final._replace(text=_UNIT.sub("", final.text) or final.text)


def _formulas(final: Final) -> list[str]:
    """Return the formulas of a final answer as math-verify finds them."""
    if final.place == "box":
        return [f"\\boxed{{{final.text}}}"] if len(final.text) <= _LONGEST_BOX else []
    if final.place == "stated" and (matrix := _MATRIX.match(final.text)):
        return [f"${matrix[0]}$"]
    if _FORMULA.search(final.text):
        return [] if _REPETITION.search(last_formula(final.text)) else [final.text]
    return [f"${clause}$" for clause in clauses_of(final)]


@functools.lru_cache(maxsize=4096)
def _ends_in_variable(answer: str) -> bool:
    r"""Say whether the letters at the end of a right answer are variables, as the h of ``\pi r^2 h``, and no unit."""
    if not _LAST_LETTERS.search(final_answer(answer).text):
        return False
    with_units, without = (_parse_right(answer, units=units) for units in (True, False))
    kept, whole = (set(getattr(parsed[0], "free_symbols", ())) if parsed else set() for parsed in (with_units, without))
    return kept < whole and len(whole) > 1


@functools.lru_cache(maxsize=4096)
def _parse_right(answer: str, *, units: bool = True) -> tuple[Any, ...]:
    final = _without_unit(final_answer(answer))
    formulas = _formulas(final) if "$" in final.text or final.place == "box" else [f"${final.text}$"]
    parsed = next((found for one in (*formulas, *_formulas(final)) if (found := _parse(one, units=units))), ())
    if not parsed and not re.search(r"\w", final.text):
        raise ValueError(f"there is no mathematics in the right answer {answer!r:.80}")
    sides = _EQUALS.split(str(parsed[-1])) if parsed else []
    if len(sides) > 2 and not all(len(_parse(f"${side}$", units=units)) > 1 for side in sides):
        parsed = parsed[-1:]  # math-verify would take what stands right of the last sign for all of it
    return parsed


@functools.lru_cache(maxsize=4096)  # candidates often give the same answer
def _parse(text: str, *, units: bool = True) -> tuple[Any, ...]:
    """Return what a formula is, and its text; the text alone where math-verify does not understand all of it."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn of the time limit that is not set
    # math-verify reads nothing from such a letter on, of 3\mathbf{i} - 2\mathbf{j} only 3; \mathrm{m} is left as a unit
    text = _BOLD.sub(r" \1\2 ", typeset(text))
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    # its ExprExtractionConfig, left out here, would take any number out of a formula that it does not understand
    own = NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True)
    config = LatexExtractionConfig(normalization_config=own)
    return tuple(parse(text, [config], extraction_mode="first_match", parsing_timeout=None))
