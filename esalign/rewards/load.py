"""Rewards by name, by ``module:function``, by ``file.py:function``, or as a function; TRL's signature or verl's."""

import functools
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from esalign import registry
from esalign.errors import ConfigError, RewardError
from esalign.types import Prompt

RewardFunction = Callable[..., Any]
"""TRL's: ``reward(prompts, completions, **columns) -> list[float | None]``; None abstains."""

OF_A_RUN = ("completion_ids", "trainer_state")
"""Arguments that a run fills in for functions that name them, as TRL does."""


@dataclass(frozen=True)
class TrainerState:
    """How far a run is, in the words of transformers' class of that name.

    Args:
        global_step: generations or updates that are done.
        max_steps: how many there are to be; 0 outside a run.
    """

    global_step: int = 0
    max_steps: int = 0


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
        named: arguments that it takes by name.
        as_text: whether it gets the completions of chats as text, and not as TRL's ``[{"role": "assistant", ...}]``.
    """

    name: str
    spec: str | RewardFunction
    options: Mapping[str, Any]
    function: RewardFunction = field(repr=False)
    parameters: frozenset[str] | None = None
    required: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()
    as_text: bool = False

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Return one reward per completion; None where the reward abstains.

        Args:
            prompts: the problems.
            completions: one for each.
            **columns: what else the problems have, a list each, e.g. ``answer=["42", ...]``; and what a run fills in:
                ``completion_ids``, a list each, and a ``trainer_state``.

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
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> list[float | None]:
        """Return rewards as `__call__` does, but leave NaN and infinities to the caller."""
        arguments = {"trainer_state": TrainerState(), **columns, "prompts": prompts, "completions": completions}
        for name in self.required:
            if name not in arguments:
                hint = registry.did_you_mean(name, columns)
                raise RewardError(
                    f"reward {self.name!r} needs {name!r}, which is neither an option nor a column{hint}; "
                    f"columns: {', '.join(columns) or 'none'}{getattr(self.function, 'columns_hint', '')}"
                )
        for name, values in arguments.items():
            if isinstance(values, str):
                raise RewardError(f"reward {self.name!r} was given text as {name!r}, expected a list: [{values!r:.40}]")
            if name != "trainer_state" and len(values) != len(completions):
                raise RewardError(
                    f"reward {self.name!r} was given {len(completions)} completions, but {len(values)} of {name!r}"
                )
        arguments["completions"] = (
            [self._text_of(one) for one in completions]
            if self.as_text
            else [self._as_given(*pair) for pair in zip(prompts, completions, strict=False)]
        )
        known = arguments.keys() - set(OF_A_RUN) if self.parameters is None else self.parameters
        known = (known | self.named) - self.options.keys()
        arguments = {name: value for name, value in arguments.items() if name in known}
        return self._checked(self.function(**arguments), len(completions))

    def _text_of(self, completion: Any) -> str:
        """Return a completion's text, also where it is given as TRL does: as chat messages."""
        try:
            text = completion if isinstance(completion, str) else completion[-1]["content"]
        except (TypeError, LookupError):
            text = None
        if not isinstance(text, str):
            raise RewardError(f"reward {self.name!r} got the completion {completion!r:.80}, expected text or messages")
        return text

    def _as_given(self, prompt: Prompt, completion: Any) -> Any:
        """Return a completion as TRL hands it over: as messages where the prompt is a chat, as text elsewhere."""
        self._text_of(completion)
        in_chat = is_chat(prompt) and isinstance(completion, str)
        return [{"role": "assistant", "content": completion}] if in_chat else completion

    def _checked(self, values: Any, count: int) -> list[float | None]:
        is_list = hasattr(values, "__len__") and hasattr(values, "__iter__")
        if not is_list or isinstance(values, (str, bytes, Mapping, AbstractSet)):
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
        spec: a registered name (``math``, ``ifeval``, ``reasoning-gym``, ``exact-match``, ``regex-match``, or a
            plug-in's), ``"module:function"``, ``"file.py:function"``, or a function. A class is instantiated with the
            options.
        **options: arguments to bind, e.g. ``ignore_case=True``.

    Raises:
        RewardError: there is no such reward, its module fails, or it does not take an option.
    """
    if isinstance(spec, Reward):
        return load_reward(spec.spec, **{**spec.options, **options}) if options else spec
    name, origin, found = _resolve(spec)
    _check_options(name, found, options)
    function: RewardFunction = functools.partial(found, **options) if options else found
    if inspect.isclass(found):
        function = function()
    signature = _signature(name, function)
    if {"solution_str", "ground_truth"} <= signature.named:
        verl = functools.partial(_score_as_verl, name, function, signature)
        return Reward(name, origin, options, verl, as_text=True)
    if not signature.takes_all and signature.named.isdisjoint({"completions", "completion_ids"}):
        raise RewardError(
            f"reward {name!r} takes no 'completions': write def {name}(completions, **columns), "
            "which gives a number for each"
        )
    parameters = None if signature.takes_all else signature.named
    return Reward(name, origin, options, function, parameters, signature.required, signature.named, signature.as_text)


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


def _check_options(name: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    """Refuse options that a function does not name, or that are columns, as it has no default for them.

    A class makes of its ``**kwargs`` what it likes, so there only an option that looks like a misspelt one is refused.
    """
    named, takes_all = _arguments(function)
    columns = [] if inspect.isclass(function) else [p.name for p in named.values() if _is_column(p)]
    known = sorted(named.keys() - columns)
    for option in options:
        if option in columns:
            raise RewardError(
                f"reward {name!r} has no option {option!r}: it has no default, so it is a column of the data; "
                f"write '{option}: ... = ...' to make it an option"
            )
        hint = registry.did_you_mean(option, known)
        if option not in named and takes_all and (hint or not inspect.isclass(function)):
            raise RewardError(
                f"reward {name!r} has no option {option!r}{hint}; options: {', '.join(known) or 'none'} (what "
                "'**' takes are columns of the data)"
            )
    try:
        registry.check_options(f"reward {name!r}", function, options, columns)
    except ConfigError as error:
        raise RewardError(str(error)) from None


def _arguments(function: RewardFunction) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the arguments that a function takes by name, and whether it takes any other."""
    taken = inspect.signature(function).parameters.values()
    named = {one.name: one for one in taken if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return named, any(one.kind is one.VAR_KEYWORD for one in taken)


def _is_column(parameter: inspect.Parameter) -> bool:
    """Say whether only the data or the run can give an argument: it has no default and need not be named."""
    of_the_run = parameter.name in ("prompts", "completions", *OF_A_RUN)
    return of_the_run or (parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty)


class _Signature(NamedTuple):
    """What a function takes.

    Args:
        named: arguments by name.
        required: those that it cannot do without.
        takes_all: whether it takes any other.
        as_text: whether its completions are annotated as texts.
    """

    named: frozenset[str]
    required: tuple[str, ...]
    takes_all: bool
    as_text: bool


def _signature(name: str, function: RewardFunction) -> _Signature:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise RewardError(f"reward {name!r} is async, expected a plain function: wrap it in asyncio.run")
    named, takes_all = _arguments(function)
    written = str(named["completions"].annotation) if "completions" in named else ""  # collections.abc.Sequence[str]
    return _Signature(
        named=frozenset(named),
        required=tuple(p.name for p in named.values() if p.default is p.empty),
        takes_all=takes_all,
        as_text=re.fullmatch(r".*\b(?:list|List|Sequence|Iterable)\[str\]", written) is not None,
    )


def is_chat(prompt: Prompt) -> bool:
    """Say whether a prompt is chat messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _score_as_verl(
    name: str,
    compute_score: RewardFunction,
    signature: _Signature,
    completions: Sequence[str],
    **columns: Sequence[Any],
) -> list[Any]:
    """Call verl's ``compute_score(data_source, solution_str, ground_truth, extra_info)`` once per completion."""
    scores = []
    for index, completion in enumerate(completions):
        row = {column: values[index] for column, values in columns.items()}
        given = {
            "data_source": row.get("data_source"),
            "solution_str": completion,
            "ground_truth": row.get("ground_truth", row.get("answer")),
            "extra_info": row.get("extra_info"),
        }
        result = compute_score(**{key: value for key, value in given.items() if key in signature.named})
        if isinstance(result, Mapping) and "score" not in result:
            raise RewardError(f"reward {name!r} returned {result!r:.80}, expected a number or a mapping with 'score'")
        scores.append(result["score"] if isinstance(result, Mapping) else result)
    return scores
