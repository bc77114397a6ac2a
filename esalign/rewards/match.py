"""Rewards that compare text."""

import re
from collections.abc import Sequence
from typing import Any

from esalign.errors import RewardError


def exact_match(
    completions: Sequence[str], answer: Sequence[Any], *, strip: bool = True, ignore_case: bool = False
) -> list[float]:
    """Return 1.0 where the completion is the answer, else 0.0.

    Args:
        completions: what the model wrote.
        answer: the right answers.
        strip: leave out white space around both.
        ignore_case: compare case-folded.
    """

    def normal(value: Any) -> str:
        text = str(value)
        text = text.strip() if strip else text
        return text.casefold() if ignore_case else text

    return [float(normal(given) == normal(right)) for given, right in zip(completions, answer, strict=True)]


def regex_match(
    completions: Sequence[str],
    answer: Sequence[Any] | None = None,
    *,
    pattern: str,
    group: int | str | None = None,
    ignore_case: bool = False,
) -> list[float]:
    r"""Return 1.0 where a pattern is found in the completion, else 0.0.

    Args:
        completions: what the model wrote.
        answer: the right answers, needed with a group only.
        pattern: regular expression, searched for anywhere; the dot matches new lines.
        group: with it, the last match's group must be the answer, white space around both left out.
        ignore_case: compare without case.

    Raises:
        RewardError: a pattern that cannot be read, a group that it does not have, or a group without answers.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    try:
        compiled = re.compile(pattern, flags)
    except re.error as error:
        raise RewardError(f"reward 'regex-match' cannot read its pattern {pattern!r}: {error}") from None
    if group is None:
        return [float(compiled.search(completion) is not None) for completion in completions]
    if answer is None:
        raise RewardError("reward 'regex-match' with a group needs the column 'answer'")
    if group not in compiled.groupindex and not (isinstance(group, int) and 0 <= group <= compiled.groups):
        raise RewardError(f"reward 'regex-match' has no group {group!r} in its pattern {pattern!r}")
    pairs = zip(completions, answer, strict=True)
    return [float(_last_group(compiled, text, group) == _normal(right, ignore_case)) for text, right in pairs]


def _last_group(pattern: re.Pattern[str], text: str, group: int | str) -> str | None:
    matches = list(pattern.finditer(text))
    found = matches[-1].group(group) if matches else None
    return None if found is None else _normal(found, bool(pattern.flags & re.IGNORECASE))


def _normal(value: Any, ignore_case: bool) -> str:
    text = str(value).strip()
    return text.casefold() if ignore_case else text
