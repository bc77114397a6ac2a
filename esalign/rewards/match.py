"""Rewards that compare text."""

import functools
import re
from collections.abc import Sequence
from typing import Any

from esalign.errors import RewardError
from esalign.rewards.answers import spellings


def exact_match(
    completions: Sequence[str], answer: Sequence[Any], *, strip: bool = True, ignore_case: bool = False
) -> list[float | None]:
    """Return 1.0 where the completion is the answer, else 0.0; None where there is no answer.

    Args:
        completions: what the model wrote.
        answer: the right answers: text, or numbers, which may be written with or without an exponent.
        strip: leave out white space around both.
        ignore_case: compare case-folded.

    Raises:
        RewardError: an answer that is a list or a mapping.
    """
    normal = functools.partial(_normal, ignore_case=ignore_case, strip=strip)

    def is_match(completion: str, right: Any) -> bool:
        return normal(completion) in map(normal, spellings("exact-match", right))

    pairs = zip(completions, answer, strict=True)
    return [None if right is None else float(is_match(completion, right)) for completion, right in pairs]


def regex_match(
    completions: Sequence[str],
    answer: Sequence[Any] | None = None,
    *,
    pattern: str,
    group: int | str | None = None,
    ignore_case: bool = False,
) -> list[float | None]:
    r"""Return 1.0 where a pattern is found in the completion, else 0.0.

    Args:
        completions: what the model wrote.
        answer: the right answers, needed with a group only; None abstains.
        pattern: regular expression, searched for anywhere; the dot matches new lines.
        group: with it, the last match's group must be the answer, white space around both left out.
        ignore_case: compare without case.

    Raises:
        RewardError: a pattern that cannot be read, a group that it does not have, a group without answers, or an answer
            that is a list or a mapping.
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
    normal = functools.partial(_normal, ignore_case=ignore_case)

    def is_match(completion: str, right: Any) -> bool:
        wanted, matches = spellings("regex-match", right), list(compiled.finditer(completion))
        found = matches[-1].group(group) if matches else None
        return found is not None and normal(found) in map(normal, wanted)

    pairs = zip(completions, answer, strict=True)
    return [None if right is None else float(is_match(completion, right)) for completion, right in pairs]


def _normal(text: str, *, ignore_case: bool, strip: bool = True) -> str:
    text = text.strip() if strip else text
    return text.casefold() if ignore_case else text
