"""One reward of one completion, and what may come of it."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from esalign.errors import RewardError
from esalign.rewards.load import Reward, TrainerState, is_chat
from esalign.types import Prompt

Failure = Literal["error", "timeout"]

MESSAGES = " (completions of chats are lists of messages; with completions: Sequence[str], a reward gets their text)"
"""Follows an error that a reward mostly makes of messages where it expects text."""


class FromOutside(BaseException):
    """What ends a reward and is none of its own making: a time limit, Ctrl-C."""


class Outcome(NamedTuple):
    """What a reward made of a completion.

    Args:
        value: the reward; None where it abstained or failed.
        failure: what kept it from one.
        message: the failure in one line.
    """

    value: float | None = None
    failure: Failure | None = None
    message: str = ""


class Item(NamedTuple):
    """A completion to score.

    Args:
        prompt: the problem.
        columns: what else the problem has.
        completion: what the model wrote, and what its prompt began for it.
        completion_ids: its tokens, for rewards that ask for them.
        state: how far the run is.
    """

    prompt: Prompt
    columns: Mapping[str, Any]
    completion: str
    completion_ids: tuple[int, ...] = ()
    state: TrainerState = TrainerState()


def one_line(error: BaseException) -> str:
    """Return an error's type and message, in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def judge(reward: Reward, item: Item) -> Outcome:
    """Score one completion. Whatever the reward raises, exits and interrupts too, and what is not finite is a failure.

    Raises:
        RewardError: the reward breaks its contract, so that no other completion can fare better.
    """
    columns: dict[str, Any] = {name: [value] for name, value in item.columns.items()}
    columns |= {"completion_ids": [list(item.completion_ids)], "trainer_state": item.state}
    try:
        value = reward.evaluate([item.prompt], [item.completion], columns)[0]
    except (RewardError, FromOutside):
        raise
    except BaseException as error:  # noqa: BLE001  (the user's code, and completions that verifiers evaluate)
        of_messages = isinstance(error, (TypeError, AttributeError)) and is_chat(item.prompt) and not reward.as_text
        return Outcome(failure="error", message=one_line(error) + (MESSAGES if of_messages else ""))
    if value is not None and not math.isfinite(value):
        return Outcome(failure="error", message=f"the reward is {value}, expected a finite number")
    return Outcome(value)
