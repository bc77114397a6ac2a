"""reasoning-gym's verifiers. Importing this module takes seconds."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from esalign.space.imports import import_reasoning_gym

_GYM = import_reasoning_gym()


@functools.cache
def find_verifier(task: str) -> Callable[[str, Mapping[str, Any]], float]:
    """Return the function that scores an answer to an entry of a task, in [0, 1]."""
    verifier: Callable[[str, Mapping[str, Any]], float] = _GYM.get_score_answer_fn(task)
    return verifier
