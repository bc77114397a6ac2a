"""Plug-ins by name, from entry points. The names of esalign itself enter by the same door as anybody's.

A distribution offers a plug-in in its ``pyproject.toml``:

    [project.entry-points."esalign.optimizers"]
    my-search = "my_package:MySearch"
"""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from esalign.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from esalign.protocols import Backend, Optimizer, Space

BACKENDS = "esalign.backends"
OPTIMIZERS = "esalign.optimizers"
REWARDS = "esalign.rewards"
FITNESS = "esalign.fitness"
SPACES = "esalign.spaces"
FORMATS = "esalign.formats"
DOCTOR = "esalign.doctor"
NEVERGRAD = "nevergrad"


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
    except (ImportError, AttributeError) as error:
        raise import_failure(point, error) from error


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
        return ConfigError(f"{user} is broken: {point.value} cannot be imported: {error}")
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
    name: str, /, *, dim: int, sigma: float = 0.3, population: int = 24, seed: int = 0, **options: Any
) -> "Optimizer":
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
        ConfigError: an unknown name or option.
        OptimizerError: settings that the optimiser refuses.
    """
    family, colon, member = name.partition(":")
    user = f"optimizer {name!r}"
    if colon and family != NEVERGRAD:
        raise ConfigError(f"unknown {user}: only nevergrad has a second name, as in 'nevergrad:TwoPointsDE'")
    factory = find(OPTIMIZERS, family)
    settings: dict[str, Any] = {"dim": dim, "sigma": sigma, "population": population, "seed": seed}
    if family == NEVERGRAD:
        if not member:
            raise ConfigError(f"{user} needs a second name, as in 'nevergrad:TwoPointsDE'")
        settings["name"] = member
    check_options(user, factory, options, reserved=settings)
    optimizer: Optimizer = factory(**settings, **options)
    return optimizer


def load_backend(
    name: str,
    /,
    *,
    model: Any,
    space: "Space | None",
    dtype: str | None = None,
    device: str | None = None,
    **options: Any,
) -> "Backend":
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
        ConfigError: an unknown name or option.
        MissingPackageError: the engine's package is not installed.
        BackendError: the engine cannot hold this model.
    """
    factory = find(BACKENDS, name)
    check_options(f"backend {name!r}", factory, options, reserved=("model", "space", "dtype", "device"))
    chosen = {key: value for key, value in (("dtype", dtype), ("device", device)) if value is not None}
    try:
        backend: Backend = factory(model=model, space=space, **chosen, **options)
    except ModuleNotFoundError as error:  # an engine imports its package on use, which is here
        raise import_failure(entry_point(BACKENDS, name), error) from error
    return backend


def make_space(name: str, /, *, model: str | None = None, adapter: str | None = None, **options: Any) -> "Space":
    """Make a search space by name.

    Args:
        name: ``svd-lora``, or what an installed plug-in offers in the entry-point group ``esalign.spaces``.
        model: the base model: a Hugging Face id, a folder or a GGUF file.
        adapter: the LoRA adapter to start from: a PEFT folder or hub id, or a GGUF file.
        **options: the space's own.

    Raises:
        ConfigError: an unknown name or option.
        AdapterError: the space refuses the adapter.
    """
    factory = find(SPACES, name)
    check_options(f"space {name!r}", factory, options, reserved=("model", "adapter"))
    space: Space = factory(model=model, adapter=adapter, **options)
    return space
