r"""Answers that are several values in no order: ``-4, 1 and 6``, a set, or ``4 \pm \sqrt{6}``."""

import re
from collections.abc import Iterator

_JOIN = re.compile(r",\s*(?:and|or)\b|\b(?:and|or)\b|[,;]")
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")
_SPAN = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SIGNS = re.compile(r"\\pm(?![A-Za-z])|±")
_DEPTH = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
LONGEST = 200  # characters of a list that an answer may be


def values_in(text: str) -> list[str]:
    r"""Return the values that a text lists, as they were written; nothing where it is no list.

    What has an equals sign is none: of ``x = 1, y = 2`` the order counts. Nor is a tuple, an interval or a matrix.

    >>> values_in(r"-4, 1 \text{ and } \frac{1}{2}"), values_in(r"\{2, 3\}"), values_in("(1, 2)"), values_in(r"1 \pm i")
    (['-4', '1', '\\frac{1}{2}'], ['2', '3'], [], ['1 + i', '1 - i'])
    """
    text = text.replace("\\$", "").strip().strip("$").rstrip(".").strip()
    text = re.sub(r"\\left|\\right(?![a-z])|\\!", "", text)
    if len(text) > LONGEST or "=" in text or "\\begin" in text:
        return []
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2]
    text = _WORDS.sub(r" \1 ", text)
    values = [value for part in _parts(text) if (value := part.strip(" $~"))]
    values = [one for value in values for one in _both_signs(value)]
    return values if len(values) > 1 else []


def last_formula(text: str) -> str:
    """Return the last formula of a text between dollars and the like; the text where there is none."""
    spans = _SPAN.findall(text.replace("\\$", ""))
    return next(part for part in spans[-1] if part) if spans else text


def _parts(text: str) -> Iterator[str]:
    """Yield what stands between the commas and words that are in no bracket."""
    depth, begin = 0, 0
    joins = {match.start(): match.end() for match in _JOIN.finditer(text)}
    for place, sign in enumerate(text):
        depth += _DEPTH.get(sign, 0)
        if depth == 0 and place >= begin and place in joins:
            yield text[begin:place]
            begin = joins[place]
    yield text[begin:]


def _both_signs(value: str) -> list[str]:
    return [_SIGNS.sub(sign, value) for sign in "+-"] if _SIGNS.search(value) else [value]
