"""Watching what a method is called with, and changing what it does, for one test."""

from collections.abc import Callable
from typing import Any

import pytest


def watch(patch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., None]) -> None:
    """Let ``note`` see the arguments of every call of a method, before the method itself does."""
    original = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    patch.setattr(owner, name, watched)


def after_init(patch: pytest.MonkeyPatch, owner: type, change: Callable[[Any], None]) -> None:
    """Let every new object of a class be changed when it is made."""
    original: Callable[..., None] = owner.__init__  # type: ignore[misc]  # of this very class

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        change(self)

    patch.setattr(owner, "__init__", changed)
