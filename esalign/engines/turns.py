"""Calls of an engine one after another, whichever threads they come from."""

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Engine = TypeVar("Engine", bound=Any)


def one_at_a_time(method: Callable[Concatenate[Engine, P], R]) -> Callable[Concatenate[Engine, P], R]:
    """Have a method of an engine wait until no other thread is in such a method of the same engine."""

    @functools.wraps(method)
    def waiting(self: Engine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # One dictionary operation, so that two first calls get the same lock.
        with vars(self).setdefault("_turns", threading.RLock()):
            return method(self, *args, **kwargs)

    return waiting
