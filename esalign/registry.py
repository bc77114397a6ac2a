"""Optimisers and engines by name: what the command line and the configuration speak in."""

from typing import TYPE_CHECKING, Any

from esalign import plugins
from esalign.errors import ConfigError
from esalign.plugins import find, names

if TYPE_CHECKING:
    from esalign.protocols import Backend, Optimizer
    from esalign.space import SvdLora

__all__ = ["find", "load_backend", "make_optimizer", "names"]

NEVERGRAD = "nevergrad"


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
    factory = find(plugins.OPTIMIZERS, family)
    settings: dict[str, Any] = {"dim": dim, "sigma": sigma, "population": population, "seed": seed}
    if family == NEVERGRAD:
        if not member:
            raise ConfigError(f"{user} needs a second name, as in 'nevergrad:TwoPointsDE'")
        settings["name"] = member
    plugins.check_options(user, factory, options, reserved=settings)
    optimizer: Optimizer = factory(**settings, **options)
    return optimizer


def load_backend(
    name: str,
    /,
    *,
    model: Any,
    space: "SvdLora | None",
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
    factory = plugins.find(plugins.BACKENDS, name)
    plugins.check_options(f"backend {name!r}", factory, options, reserved=("model", "space", "dtype", "device"))
    chosen = {key: value for key, value in (("dtype", dtype), ("device", device)) if value is not None}
    try:
        backend: Backend = factory(model=model, space=space, **chosen, **options)
    except ModuleNotFoundError as error:  # an engine imports its package on use, which is here
        raise plugins.import_failure(plugins.entry_point(plugins.BACKENDS, name), error) from error
    return backend
