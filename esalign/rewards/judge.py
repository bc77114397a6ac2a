"""One reward of one answer, and what may come of it."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from esalign.errors import RewardError
from esalign.rewards.load import Reward
from esalign.types import Prompt

Failure = Literal["error", "timeout"]


class FromOutside(BaseException):
    """What ends a reward and is none of its own making: a time limit, Ctrl-C."""


class Outcome(NamedTuple):
    """What a reward made of an answer.

    Args:
        value: the reward; None where it abstained or failed.
        failure: what kept it from one.
        message: the failure in one line.
    """

    value: float | None = None
    failure: Failure | None = None
    message: str = ""


class Item(NamedTuple):
    """An answer to score."""

    prompt: Prompt
    columns: Mapping[str, Any]
    completion: str


def one_line(error: BaseException) -> str:
    """Return an error's type and message, in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def judge(reward: Reward, item: Item) -> Outcome:
    """Score one answer. Whatever the reward raises, exits and interrupts included, and what is not finite is a failure.

    Raises:
        RewardError: the reward breaks its contract, so that no other answer can fare better.
    """
    columns = {name: [value] for name, value in item.columns.items()}
    try:
        value = reward.evaluate([item.prompt], [item.completion], columns)[0]
    except (RewardError, FromOutside):
        raise
    except BaseException as error:  # noqa: BLE001  (the user's code, and answers that verifiers evaluate)
        return Outcome(failure="error", message=one_line(error))
    if value is not None and not math.isfinite(value):
        return Outcome(failure="error", message=f"the reward is {value}, expected a finite number")
    return Outcome(value)
