"""Rewards by name, by ``module:function``, by ``file.py:function``, or as a function; TRL's signature or verl's."""

import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from esalign import registry
from esalign.errors import ConfigError, RewardError
from esalign.types import Prompt

RewardFunction = Callable[..., Any]
"""TRL's: ``reward(prompts, completions, **columns) -> list[float | None]``; None abstains."""


@dataclass(frozen=True)
class Reward:
    """A loaded reward. It travels to another process as what it was loaded from, and is loaded there again.

    Args:
        name: what to call it.
        spec: what it was loaded from.
        options: what was bound when it was loaded.
        function: the function, options bound.
        parameters: arguments that the function takes; None takes all.
        required: arguments that it cannot do without.
    """

    name: str
    spec: str | RewardFunction
    options: Mapping[str, Any]
    function: RewardFunction = field(repr=False)
    parameters: frozenset[str] | None = None
    required: tuple[str, ...] = ()

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Return one reward per completion; None where the reward abstains.

        Args:
            prompts: the problems.
            completions: an answer to each.
            **columns: what else the problems have, a list each, e.g. ``answer=["42", ...]``.

        Raises:
            RewardError: a column is missing, or the function returned something else than a finite number or None
                per completion.
        """
        values = self.evaluate(prompts, completions, columns)
        for index, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                raise RewardError(f"reward {self.name!r} gave {value} for completion {index}, expected a finite number")
        return values

    def evaluate(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """Return rewards as `__call__` does, but leave NaN and infinities to the caller."""
        arguments = {**columns, "prompts": prompts, "completions": completions}
        for name in self.required:
            if name not in arguments:
                hint = registry.did_you_mean(name, columns)
                raise RewardError(
                    f"reward {self.name!r} needs {name!r}, which is neither an option nor a column{hint}; "
                    f"columns: {', '.join(columns) or 'none'}"
                )
        for name, values in arguments.items():
            if isinstance(values, str):
                raise RewardError(f"reward {self.name!r} was given text as {name!r}, expected a list: [{values!r:.40}]")
            if len(values) != len(completions):
                raise RewardError(
                    f"reward {self.name!r} was given {len(completions)} completions, but {len(values)} of {name!r}"
                )
        known = arguments if self.parameters is None else self.parameters
        arguments = {name: value for name, value in arguments.items() if name in known and name not in self.options}
        return self._checked(self.function(**arguments), len(completions))

    def _checked(self, values: Any, count: int) -> list[float | None]:
        if isinstance(values, str) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
            raise RewardError(
                f"reward {self.name!r} returned {values!r:.80}, expected a list with a number or None per completion"
            )
        if len(values) != count:
            raise RewardError(f"reward {self.name!r} returned {len(values)} values for {count} completions")
        return [self._as_number(value) for value in values]

    def _as_number(self, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, Real) or getattr(value, "shape", None) == ():  # a number, or a numpy or torch scalar
            return float(value)
        raise RewardError(f"reward {self.name!r} returned {value!r:.80} in its list, expected numbers or None")

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(load_reward, **self.options), (self.spec,)


def load_reward(spec: str | RewardFunction | Reward, **options: Any) -> Reward:
    """Load a reward.

    Args:
        spec: a registered name (``math``, ``reasoning-gym``, ``exact-match``, ``regex-match``, or a plug-in's),
            ``"module:function"``, ``"file.py:function"``, or a function. A class is instantiated with the options.
        **options: arguments to bind, e.g. ``ignore_case=True``.

    Raises:
        RewardError: there is no such reward, its module fails, or it does not take an option.
    """
    if isinstance(spec, Reward):
        return load_reward(spec.spec, **{**spec.options, **options}) if options else spec
    name, origin, found = _resolve(spec)
    _check_options(name, found, options, () if inspect.isclass(found) else ("prompts", "completions"))
    function: RewardFunction = functools.partial(found, **options) if options else found
    if inspect.isclass(found):
        function = function()
    parameters, required = _signature(name, function)
    if parameters is not None and {"solution_str", "ground_truth"} <= parameters:
        function, parameters, required = functools.partial(_score_as_verl, function, parameters), None, ()
    return Reward(name, origin, options, function, parameters, required)


def _resolve(spec: str | RewardFunction) -> tuple[str, str | RewardFunction, RewardFunction]:
    """Return a reward's name, where to load it again from, and the function."""
    if not isinstance(spec, str):
        if not callable(spec):
            raise RewardError(f"a reward is {type(spec).__name__}, expected a name, 'module:function' or a function")
        return getattr(spec, "__name__", type(spec).__name__), spec, spec
    if spec in registry.names(registry.REWARDS):
        try:
            return spec, spec, registry.find(registry.REWARDS, spec)
        except ConfigError as error:
            raise RewardError(str(error)) from error
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        known = registry.names(registry.REWARDS)
        raise RewardError(
            f"unknown reward {spec!r}{registry.did_you_mean(spec, known)}; known: {', '.join(known)}, "
            "or 'module:function', or 'file.py:function'"
        )
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        return attribute, f"{path}:{attribute}", _attribute(_import_file(path), attribute, place)
    return attribute, spec, _attribute(_import_module(place, spec), attribute, place)


def _import_module(name: str, spec: str) -> Any:
    """Import a module; the working folder counts, as it does for ``python -m``."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise RewardError(f"reward {spec!r}: there is no module {error.name!r}") from None
        raise RewardError(f"reward {spec!r}: its module needs {error.name!r}, which is not installed") from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise RewardError(f"reward {spec!r}: its module fails: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> Any:
    """Import a file under a name of its own; modules beside it can be imported from it."""
    if not path.is_file():
        raise RewardError(f"there is no reward file '{path}'")
    if (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)
    name = f"esalign_reward_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise RewardError(f"reward file '{path}' cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise RewardError(f"{path}:{error.lineno}: {error.msg}") from None
    except Exception as error:  # whatever a user's file does when it is imported
        raise RewardError(f"reward file '{path}' fails: {type(error).__name__}: {error}") from error
    return module


def _attribute(module: Any, name: str, place: str) -> RewardFunction:
    found = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = registry.did_you_mean(name, known)
        raise RewardError(f"'{place}' has no function {name!r}{hint}; functions: {', '.join(known) or 'none'}")
    if not callable(found):
        raise RewardError(f"{name!r} of '{place}' is {type(found).__name__}, expected a function")
    return found


def _check_options(name: str, function: RewardFunction, options: Mapping[str, Any], reserved: Sequence[str]) -> None:
    try:
        registry.check_options(f"reward {name!r}", function, options, reserved)
    except ConfigError as error:
        raise RewardError(str(error)) from None


def _signature(name: str, function: RewardFunction) -> tuple[frozenset[str] | None, tuple[str, ...]]:
    """Return the arguments that a function takes (None: all) and those that it cannot do without."""
    if inspect.iscoroutinefunction(function):
        raise RewardError(f"reward {name!r} is async, expected a plain function: wrap it in asyncio.run")
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = tuple(p.name for p in named if p.default is p.empty)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None, required
    return frozenset(p.name for p in named), required


def _score_as_verl(
    compute_score: RewardFunction, parameters: frozenset[str], completions: Sequence[str], **columns: Sequence[Any]
) -> list[Any]:
    """Call verl's ``compute_score(data_source, solution_str, ground_truth, extra_info)`` once per completion."""
    scores = []
    for index, completion in enumerate(completions):
        row = {name: values[index] for name, values in columns.items()}
        given = {
            "data_source": row.get("data_source"),
            "solution_str": completion,
            "ground_truth": row.get("ground_truth", row.get("answer")),
            "extra_info": row.get("extra_info"),
        }
        result = compute_score(**{name: value for name, value in given.items() if name in parameters})
        scores.append(result["score"] if isinstance(result, Mapping) else result)
    return scores
