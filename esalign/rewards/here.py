"""Scoring in the run's own process: a time limit, and Ctrl-C told from what a reward raises."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from esalign.rewards.judge import FromOutside, Item, Outcome, judge
from esalign.rewards.load import Reward


class _TimeIsUpError(FromOutside):
    """A reward has had its time."""


class _InterruptedHereError(FromOutside, KeyboardInterrupt):
    """Somebody pressed Ctrl-C; the reward did not raise this."""


def judge_here(reward: Reward, item: Item, timeout: float) -> Outcome:
    """Score one completion as `judge` does, with a time limit.

    The limit is an alarm of the system, which only the main thread gets, and which waits for code in C to return.

    Args:
        reward: what to score with.
        item: the completion.
        timeout: seconds.

    Raises:
        RewardError: see `judge`.
        KeyboardInterrupt: from outside; one that the reward raises itself is its failure.
    """
    if threading.current_thread() is not threading.main_thread():
        return judge(reward, item)
    try:
        with _alarm(timeout), _marked_interrupts():
            return judge(reward, item)
    except _TimeIsUpError:
        return Outcome(failure="timeout", message=f"no reward within {timeout:g} s")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUpError` after so many seconds, and again where a reward catches it."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise _TimeIsUpError

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    waiting, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if waiting:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(waiting - (time.monotonic() - began), 1e-3), interval)


@contextmanager
def _marked_interrupts() -> Iterator[None]:
    """Let interrupts that come from outside be told from those that a reward raises."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except KeyboardInterrupt as error:
            raise _InterruptedHereError from error

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
