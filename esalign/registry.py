"""Plug-ins by name, from entry points. The names of esalign itself enter by the same door as anybody's.

A distribution offers a plug-in in its ``pyproject.toml``:

    [project.entry-points."esalign.optimizers"]
    my-search = "my_package:MySearch"
"""

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from os import PathLike
from pathlib import PurePath
from typing import Any

from esalign.errors import ConfigError, MissingPackageError
from esalign.protocols import Backend, Fitness, Optimizer, Space

BACKENDS = "esalign.backends"
OPTIMIZERS = "esalign.optimizers"
REWARDS = "esalign.rewards"
FITNESS = "esalign.fitness"
SPACES = "esalign.spaces"
FORMATS = "esalign.formats"
DOCTOR = "esalign.doctor"
PLUGS = {BACKENDS: Backend, OPTIMIZERS: Optimizer, SPACES: Space, FITNESS: Fitness}
NEVERGRAD = "nevergrad"

DEFAULT_SIGMA = 0.7
"""First step size where a space names none of its own."""
DEFAULT_POPULATION = 24
"""Candidates of a generation."""


def names(group: str) -> list[str]:
    """Return the sorted names that the installed distributions offer in an entry-point group."""
    return sorted({point.name for point in entry_points(group=group)})


def find(group: str, name: str) -> Any:
    """Return the object that an entry-point group has under a name.

    Args:
        group: one of the constants above, e.g. ``esalign.backends``.
        name: an entry point's name.

    Raises:
        ConfigError: no such name, two distributions that claim it, or a plug-in whose module is broken.
        MissingPackageError: the plug-in needs a package that is not installed.
    """
    point = entry_point(group, name)
    try:
        return point.load()
    except Exception as error:  # whatever a plug-in's module does on import
        raise import_failure(point, error) from error


def find_format(path: str | PathLike[str]) -> Any | None:
    """Return what reads and writes files of a path's ending, such as .gguf; None where no installed engine does."""
    ending = PurePath(path).suffix.removeprefix(".")
    return find(FORMATS, ending) if ending in names(FORMATS) else None


def entry_point(group: str, name: str) -> EntryPoint:
    """Return the one entry point of a group that has a name.

    Raises:
        ConfigError: no such name, or two distributions that claim it.
    """
    points = {point.value: point for point in entry_points(group=group) if point.name == name}
    user = f"{noun(group)} {name!r}"
    if not points:
        known = names(group)
        raise ConfigError(f"unknown {user}{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}")
    if len(points) > 1:
        raise ConfigError(f"{user} is claimed by {' and by '.join(sorted(points))}: uninstall all but one")
    return next(iter(points.values()))


def import_failure(point: EntryPoint, error: Exception) -> Exception:
    """Return the error to raise for a plug-in that could not be imported, with the way out in it."""
    user = f"{noun(point.group)} {point.name!r}"
    if isinstance(error, MissingPackageError):
        return error
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return ConfigError(f"{user} is broken: {point.value} cannot be imported: {reason}")
    package = error.name.partition(".")[0]
    if package == point.module.partition(".")[0]:
        return ConfigError(f"{user} is broken: {point.value} does not exist; reinstall the package that offers it")
    if (
        point.dist
        and point.dist.name == "esalign"
        and point.name in (point.dist.metadata.get_all("Provides-Extra") or ())
    ):
        return MissingPackageError(user, package, point.name)  # its extras are named like the plug-ins that need them
    return ConfigError(f"{user} needs the package {package!r}, which is not installed: pip install {package}")


def noun(group: str) -> str:
    """Return what a group holds, in the singular.

    >>> noun("esalign.backends")
    'backend'
    >>> noun("esalign.fitness")
    'fitness'
    """
    plural = group.rpartition(".")[2]
    return plural if plural.endswith("ss") else plural.removesuffix("s")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint to append to an error about an unknown name, empty when nothing is close.

    >>> did_you_mean("cmaes", ["cma-es", "random-search"])
    ", did you mean 'cma-es'?"
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f", did you mean {by_lower[close[0]]!r}?" if close else ""


def check_options(user: str, factory: Callable[..., Any], options: Mapping[str, Any], reserved: Iterable[str]) -> None:
    """Refuse options that a factory does not take, and values of another type than it wants.

    Args:
        user: what the options are for, e.g. ``"optimizer 'cma-es'"``.
        factory: the class or function that will get them. One that takes ``**kwargs`` judges by itself what it does not
            name.
        options: the user's options.
        reserved: parameters that are no options, as the caller fills them in.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type.
    """
    parameters = inspect.signature(factory).parameters.values()
    taken = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        _check_types(user, factory, {name: value for name, value in options.items() if name in taken})
        return
    known = sorted(taken - set(reserved))
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{user} has no option {name!r}{did_you_mean(name, known)}; options: {', '.join(known) or 'none'}"
            )
    _check_types(user, factory, options)


def _check_types(user: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Compare options, as a file gives them, with the factory's annotations, as far as these can be understood."""
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except NameError:  # annotations that only a type checker resolves
        return
    for name, value in options.items():
        wanted = parameters[name].annotation
        try:
            TypeAdapter(wanted).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ConfigError(f"{user}: option {name!r} is {value!r}, {message[0].lower()}{message[1:]}") from None
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
            continue  # an annotation without a schema, or an object that only code can give


def merge(user: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings and options as one, for ``**``.

    Args:
        user: what they are for, e.g. ``"optimizer 'cma-es'"``.
        settings: what has a place of its own.
        options: the user's options.

    Raises:
        ConfigError: an option that is a setting.
    """
    for name in options:
        if name in settings:
            raise ConfigError(f"{user} has no option {name!r}: it is a setting of its own, set it there")
    return {**settings, **options}


def make_optimizer(
    name: str,
    /,
    *,
    dim: int,
    sigma: float = DEFAULT_SIGMA,
    population: int = DEFAULT_POPULATION,
    seed: int = 0,
    **options: Any,
) -> Optimizer:
    """Make an optimiser by name.

    Args:
        name: ``cma-es``, ``openai-es``, ``random-search``, ``nevergrad:<Name>`` for any name that nevergrad registers,
            or what an installed plug-in offers in the entry-point group ``esalign.optimizers``.
        dim: length of the search vector, at least 1.
        sigma: first step size, positive, in units of the search vector.
        population: candidates of a generation.
        seed: of the optimiser's random stream, at least 0.
        **options: the optimiser's own, see `docs/optimizers.md`.

    Raises:
        ConfigError: an unknown name or option, or a plug-in that is no optimiser.
        OptimizerError: settings that the optimiser refuses.
    """
    family, colon, member = name.partition(":")
    user = f"optimizer {name!r}"
    if colon and family != NEVERGRAD:
        raise ConfigError(f"unknown {user}: only nevergrad has a second name, as in 'nevergrad:TwoPointsDE'")
    settings: dict[str, Any] = {"dim": dim, "sigma": sigma, "population": population, "seed": seed}
    if family == NEVERGRAD:
        if not member:
            raise ConfigError(f"{user} needs a second name, as in 'nevergrad:TwoPointsDE'")
        settings["name"] = member
    optimizer: Optimizer = make_plug(OPTIMIZERS, family, settings, options, user=user)
    return optimizer


def load_backend(
    name: str,
    /,
    *,
    model: Any,
    space: Space | None,
    dtype: str | None = None,
    device: str | None = None,
    **options: Any,
) -> Backend:
    """Start an inference engine by name.

    Args:
        name: ``torch``, ``vllm``, ``llama-cpp``, or what an installed plug-in offers in the entry-point group
            ``esalign.backends``.
        model: the base model, as the engine takes it: a Hugging Face folder or id.
        space: the search space whose frozen factors the engine holds; None for the bare model, whose candidates have
            shape (population, 0).
        dtype: precision of the base weights, as the engine names it; the engine's default unless given.
        device: where the engine computes, as the engine names it; the engine's default unless given.
        **options: the engine's own.

    Raises:
        ConfigError: an unknown name or option, or a plug-in that is no backend.
        MissingPackageError: the engine's package is not installed.
        BackendError: the engine cannot hold this model.
    """
    backend: Backend = make_plug(
        BACKENDS, name, {"model": model, "space": space}, options, defaults={"dtype": dtype, "device": device}
    )
    return backend


def make_fitness(
    name: str, parts: Any, /, *, prompts: int | None = None, samples: int | None = None, **options: Any
) -> Fitness:
    """Make a fitness by name.

    Args:
        name: ``reward``, ``surrogate``, ``distillation``, or what an installed plug-in offers in the entry-point group
            ``esalign.fitness``.
        parts: what every fitness is made of, an `esalign.fitness.FitnessParts`.
        prompts: problems per generation; the fitness's default unless given.
        samples: completions per problem; the fitness's default unless given.
        **options: the fitness's own.

    Raises:
        ConfigError: an unknown name or option, or a plug-in that is no fitness.
    """
    sizes = {"prompts": prompts, "samples": samples}
    fitness: Fitness = make_plug(FITNESS, name, {}, options, first=(parts,), defaults=sizes)
    return fitness


def make_plug(
    group: str,
    name: str,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    user: str = "",
    first: tuple[Any, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Make a plug, and refuse one that lacks a member of its protocol.

    Args:
        group: its entry-point group.
        name: its name there.
        settings: what esalign fills in.
        options: the user's.
        user: what the plug is called in errors; its noun and name unless given.
        first: what esalign fills in by position.
        defaults: what esalign fills in where it is not None.

    Raises:
        ConfigError: an unknown name or option, or what is made lacks a member.
        MissingPackageError: it needs a package that is not installed.
    """
    factory, user = functools.partial(find(group, name), *first), user or f"{noun(group)} {name!r}"
    chosen = {key: value for key, value in (defaults or {}).items() if value is not None}
    check_options(user, factory, options, reserved=(*settings, *(defaults or {})))
    arguments = {**settings, **chosen, **options}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{user} cannot be made with {', '.join(arguments)}: {error}") from None
    try:
        plug = factory(**arguments)
    except ModuleNotFoundError as error:  # packages are imported on use, which is here
        raise import_failure(entry_point(group, name), error) from error
    protocol = PLUGS[group]
    missing = [member for member in vars(protocol) if not member.startswith("_") and not _has(plug, member)]
    if missing:
        raise ConfigError(f"{user} lacks {', '.join(missing)}: see esalign.protocols.{protocol.__name__}")
    return plug


def _has(plug: Any, member: str) -> bool:
    """Say whether a plug has a member, which is not computed for this where it is a property."""
    absent = object()
    return inspect.getattr_static(plug, member, absent) is not absent or hasattr(plug, member)
