"""What all optimisers check at their edge, and how they keep what they asked."""

import math
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from esalign.errors import OptimizerError
from esalign.protocols import Optimizer
from esalign.types import Array, State


def check_settings(*, dim: int, sigma: float, population: int, seed: int, least_population: int = 1) -> None:
    """Refuse settings that no optimiser can work with.

    Raises:
        OptimizerError: dim below 1, population below ``least_population``, a negative seed, or sigma that is not a
            positive finite number.
    """
    for name, value, least in (("dim", dim, 1), ("population", population, least_population), ("seed", seed, 0)):
        check_integer(name, value, least)
    check_number("sigma", sigma, above=0.0)


def check_integer(name: str, value: Any, least: int) -> None:
    """Refuse what is not an integer of at least ``least``."""
    try:
        fits = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        fits = False
    if not fits:
        raise OptimizerError(f"{name} is {value!r}, expected an integer of at least {least}")


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    """Refuse what is not a finite number within bounds; ``above`` and ``below`` are themselves outside."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if number and above < value < below and least <= value <= most:
        return
    bounds = (("above", above), ("of at least", least), ("below", below), ("of at most", most))
    expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
    raise OptimizerError(f"{name} is {value!r}, expected a finite number {expected}")


def check_told(asked: Array | None, candidates: Array, fitness: Array) -> tuple[Array, Array]:
    """Return the asked candidates and their fitness, a new float64 array (population,), or say what is wrong.

    Args:
        asked: the candidates that wait for their fitness, shape (population, dim); None when there are none.
        candidates: what the caller says he evaluated.
        fitness: what he says it is worth.

    Raises:
        OptimizerError: nothing was asked, other shapes or candidates than asked, or fitness that is not finite.
    """
    if asked is None:
        raise OptimizerError("tell was called without candidates to tell of: call ask first, and tell once")
    candidates = _as_floats("candidates", candidates)
    if candidates.shape != asked.shape:
        raise OptimizerError(f"candidates have shape {candidates.shape}, expected {asked.shape}, as asked")
    wrong = np.flatnonzero((candidates != asked).any(axis=1))
    if len(wrong):
        raise OptimizerError(f"candidate {wrong[0]} is not the one that was asked: tell what ask returned, unchanged")
    fitness = _as_floats("fitness", fitness)
    if fitness.shape != asked.shape[:1]:
        raise OptimizerError(f"fitness has shape {fitness.shape}, expected {asked.shape[:1]}: one for each candidate")
    wrong = np.flatnonzero(~np.isfinite(fitness))
    if len(wrong):
        value = fitness[wrong[0]]
        raise OptimizerError(f"fitness of candidate {wrong[0]} is {value}, expected finite numbers: nothing was learnt")
    return asked, fitness


def _as_floats(name: str, values: Any) -> Array:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"{name} cannot be read as an array of numbers: {error}") from error


def check_state(state: State, expected: Mapping[str, Any]) -> None:
    """Refuse a state that was saved by another optimiser, or by one with other settings.

    Args:
        state: what `load_state_dict` got.
        expected: the settings of the optimiser that loads it; the state must hold the same.
    """
    for name, value in expected.items():
        found = take(state, name)
        if found != value:
            raise OptimizerError(
                f"the state has {name} {found!r}, but this optimiser has {value!r}: make one with the state's settings"
            )


def take(state: State, name: str, shape: tuple[int, ...] | None = None) -> Any:
    """Return an entry of a state, checked; arrays (those with a shape) as float64 copies."""
    if name not in state:
        raise OptimizerError(f"the state lacks {name!r}: it is damaged, or of another version")
    if shape is None:
        return state[name]
    array = _as_floats(name, state[name])
    if array.shape != shape:
        raise OptimizerError(f"the state's {name!r} has shape {array.shape}, expected {shape}")
    return array


class Pending:
    """What an optimiser keeps beside what it learns: settings, a random stream, and candidates that wait for fitness.

    Args:
        settings: what a state must agree with, ``population`` and ``dim`` among it.
        rng: the random stream.
    """

    def __init__(self, settings: State, rng: np.random.Generator) -> None:
        self.settings, self.rng = settings, rng
        self.shape: tuple[int, int] = (settings["population"], settings["dim"])
        self._asked: Array | None = None

    def ask(self, draw: Callable[[], Array]) -> Array:
        """Return the candidates that wait, shape (population, dim), or else new ones."""
        if self._asked is None:
            self._asked = draw()
        return self._asked.copy()

    def tell(self, candidates: Array, fitness: Array) -> tuple[Array, Array]:
        """Return the candidates, which wait no longer, and their fitness; see `check_told` for what is refused."""
        asked, fitness = check_told(self._asked, candidates, fitness)
        self._asked = None
        return asked, fitness

    def state_dict(self) -> State:
        """Return settings, the stream's position, and the candidates that wait."""
        asked = None if self._asked is None else self._asked.copy()
        return {**self.settings, "rng": self.rng.bit_generator.state, "asked": asked}

    def restored(self, state: State) -> "Pending":
        """Return what a state holds, itself unchanged.

        Raises:
            OptimizerError: the state is of other settings, or damaged.
        """
        check_state(state, self.settings)
        found = Pending(self.settings, np.random.default_rng())
        generator = found.rng.bit_generator
        try:
            generator.state = take(state, "rng")
        except (TypeError, ValueError, KeyError) as error:
            raise OptimizerError(f"the state's 'rng' is no state of {type(generator).__name__}: {error}") from error
        found._asked = None if take(state, "asked") is None else take(state, "asked", self.shape)
        return found


def reduce(optimizer: Optimizer, settings: Mapping[str, Any], **arguments: Any) -> tuple[Any, ...]:
    """Return what `copy` and `pickle` make a copy of: one that asks the same and shares nothing.

    Args:
        optimizer: what is to be copied.
        settings: the arguments of its construction, with its name under ``optimizer``.
        **arguments: those that the settings lack.
    """
    given = {name: value for name, value in settings.items() if name != "optimizer"}
    return _rebuild, (type(optimizer), {**given, **arguments}, optimizer.state_dict())


def _rebuild(factory: Callable[..., Optimizer], arguments: Mapping[str, Any], state: State) -> Optimizer:
    optimizer = factory(**arguments)
    optimizer.load_state_dict(state)
    return optimizer
