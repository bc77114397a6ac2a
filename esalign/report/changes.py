"""Which test problems a run gained and lost, with the texts before and after, so that a trick is seen at a glance."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esalign.run.first_step import repeats_itself

LEAST_COMMON = 0.8  # share of the gained completions that must have a form, for it to be said
LEAST_GAINED = 3  # fewer share a form by chance
EDGE = 3  # words of a beginning or an end
_NUMBER = re.compile(r"\d[\d.,]*")
_WORD = re.compile(r"[^\W\d_]+|#|[^\w\s]")


@dataclass(frozen=True)
class Change:
    """A problem whose reward is not what it was.

    Args:
        prompt: the problem.
        before: the start's completion.
        after: the result's.
        reward_before: of the start's.
        reward_after: of the result's.
    """

    prompt: Any
    before: str
    after: str
    reward_before: float
    reward_after: float


@dataclass(frozen=True)
class Changes:
    """What became of the test problems.

    Args:
        problems: how many have a reward before and after.
        gained: those with a higher one, the most rewarded first.
        lost: those with a lower one, the greatest loss first.
        form: what the gained completions have in common and no completion of the start had, in words; else empty.
    """

    problems: int
    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    form: str = ""

    @property
    def counts(self) -> str:
        """How many were gained and lost, in words."""
        return f"{len(self.gained)} of {self.problems} test problems gained, {len(self.lost)} lost"


def find_changes(rows: Sequence[Mapping[str, Any]]) -> Changes | None:
    """Return what changed between start and result, from the rows of ``completions.jsonl``; None without both."""
    start = {row["problem"]: row for row in rows if row.get("state") == "start" and "problem" in row}
    result = {row["problem"]: row for row in rows if row.get("state") == "result" and "problem" in row}
    pairs = [(start[number], result[number]) for number in start if number in result]
    known = [pair for pair in pairs if all(row.get("reward") is not None for row in pair)]
    if not known:
        return None
    changes = [
        Change(after.get("prompt"), _text(before), _text(after), float(before["reward"]), float(after["reward"]))
        for before, after in known
    ]
    gained = sorted((one for one in changes if one.reward_after > one.reward_before), key=_by_reward)
    lost = sorted((one for one in changes if one.reward_after < one.reward_before), key=_by_loss)
    form = describe_new_form(gained, [(row.get("prompt"), _text(row)) for row in start.values()])
    return Changes(len(known), tuple(gained), tuple(lost), form)


def describe_new_form(gained: Sequence[Change], of_start: Sequence[tuple[Any, str]]) -> str:
    """Say which form most gained completions have that no completion of the start has; empty when there is none.

    Args:
        gained: problems with a higher reward.
        of_start: prompts, and what the start wrote for them.
    """
    if len(gained) < LEAST_GAINED:
        return ""
    for describe in _FORMS:
        counts: dict[str, int] = {}
        for change in gained:
            form = describe(change.prompt, change.after)
            counts[form] = counts.get(form, 0) + 1
        form = max(counts, key=lambda one: (counts[one], one))
        known = {describe(prompt, text) for prompt, text in of_start}
        if form and counts[form] >= LEAST_COMMON * len(gained) and form not in known:
            return (
                f"{counts[form]} of {len(gained)} gained completions {form}, as none of the start's does: "
                "a better solution, or a trick?"
            )
    return ""


def _by_reward(change: Change) -> tuple[float, float]:
    return -change.reward_after, change.reward_before


def _by_loss(change: Change) -> float:
    return change.reward_after - change.reward_before


def _text(row: Mapping[str, Any]) -> str:
    return str(row.get("completion", ""))


def _words(text: str) -> list[str]:
    """Return words and marks, every number as '#'."""
    return _WORD.findall(_NUMBER.sub("#", text))


def _is_repeated_prompt(prompt: Any, text: str) -> str:
    asked = prompt if isinstance(prompt, str) else str(prompt[-1].get("content")) if _is_chat(prompt) else ""
    said, piece = " ".join(asked.split()), " ".join(text.split()).rstrip(" =?.")
    return "repeat a piece of their prompt" if len(_words(piece)) >= EDGE and piece in said else ""


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[-1], Mapping)


def _is_repetition(_: Any, text: str) -> str:
    return "say one thing again and again" if repeats_itself(text.split()) else ""


def _shape(_: Any, text: str) -> str:
    words = _words(text)
    return f"have the form '{' '.join(words)}'" if 0 < len(words) <= 4 * EDGE else ""


def _end(_: Any, text: str) -> str:
    words = _words(text)
    return f"end in '{' '.join(words[-EDGE:])}'" if len(words) > EDGE else ""


def _beginning(_: Any, text: str) -> str:
    words = _words(text)
    return f"begin with '{' '.join(words[:EDGE])}'" if len(words) > EDGE else ""


def _mark(mark: str) -> Callable[[Any, str], str]:
    return lambda _, text: f"have a '{mark}'" if mark in text else ""


_MARKS = ("\\boxed", "####", "<answer>", "<think>", "```", "**", "answer is")
_FORMS: tuple[Callable[[Any, str], str], ...] = (
    _is_repeated_prompt,
    _is_repetition,
    _shape,
    _end,
    _beginning,
    *(_mark(mark) for mark in _MARKS),
)
