"""What every backend checks at its edge: options, that it is still open, and what it is given to score."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from esalign.engines.text import TextCodec
from esalign.errors import BackendError
from esalign.types import Array, Sequences

T = TypeVar("T")


class Given(NamedTuple):
    """A completion that is given, to be scored.

    Args:
        prompt: token ids, at least one.
        completion: token ids, none too.
        wanted: ids of interest at each token of the completion, shape (tokens, k), int64.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    wanted: Array


def check_sequences(codec: TextCodec, sequences: Sequences, support: Sequence[Array] | None) -> list[Given]:
    """Return what `esalign.protocols.Backend.score` is given; without support, each token is its own.

    Raises:
        BackendError: no ids of the model, a sequence beyond its context, or support of another shape.
    """
    given = []
    for j, pair in enumerate(sequences):
        if isinstance(pair, str | Mapping) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise BackendError(
                f"sequence {j} is {pair!r:.80}, expected a pair: the ids of a prompt and of a completion"
            )
        prompt, completion = pair
        read = codec.encode(prompt, f"the prompt of sequence {j}")
        ids = tuple(codec.check_ids(completion, f"the completion of sequence {j}"))
        codec.check_context(f"the prompt of sequence {j}", len(read), len(ids))
        wanted = np.array(ids, dtype=np.int64)[:, None] if support is None else np.asarray(support[j])
        given.append(Given(read, ids, _check_support(j, wanted, len(ids), codec.vocab)))
    return given


def _check_support(j: int, wanted: Array, tokens: int, vocab: int) -> Array:
    if wanted.ndim != 2 or len(wanted) != tokens or wanted.dtype.kind not in "iu":
        raise BackendError(
            f"support {j} has shape {wanted.shape} and type {wanted.dtype}, expected integers of shape ({tokens}, k): "
            "one row per token of the completion"
        )
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < vocab:
        raise BackendError(f"support {j} holds ids outside of the vocabulary, 0 to {vocab - 1}")
    return wanted.astype(np.int64)


def as_asked(scores: list[list[Array]], support: Sequence[Array] | None) -> list[list[Array]]:
    """Return tables of scores, each (tokens, k), as they were asked for: (tokens,) without support."""
    return scores if support is not None else [[table[:, 0] for table in row] for row in scores]


EXACT, ROUNDED = 0.02, 0.2
"""Mean difference of log-probabilities, in nats, from which it is no rounding: in float32, and in other types."""


def opened(engine: T | None) -> T:
    """Return an engine that was not closed.

    Raises:
        BackendError: it was.
    """
    if engine is None:
        raise BackendError("the engine was closed: make a new one")
    return engine


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices if choice is not None)
        raise BackendError(f"{name} is {value!r}, expected one of {listed}")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is no whole number of at least so much; None stands for a default."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise BackendError(f"{name} is {value!r}, expected a whole number of at least {least}")


def check_positive(name: str, value: float | None) -> None:
    """Refuse what is not above zero; None stands for a default."""
    if value is not None and not value > 0:
        raise BackendError(f"{name} is {value!r}, expected a number above 0")
