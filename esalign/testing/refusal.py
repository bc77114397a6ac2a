"""What the contracts expect of a refusal: the right error, in one line."""

from collections.abc import Callable
from typing import Any


def expect_refusal(kind: type[Exception], call: Callable[..., Any], *args: Any) -> None:
    """Assert that a call raises an error of a kind, with one line of text.

    >>> expect_refusal(ValueError, int, "much")
    """
    message = None
    try:
        call(*args)
    except kind as error:
        message = str(error).strip()
    assert message is not None, f"expected {kind.__name__}, but the call was accepted"
    assert message, f"{kind.__name__} says nothing"
    assert "\n" not in message, f"more than one line: {message}"
