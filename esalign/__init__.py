"""esalign aligns language models without gradients: evolution strategies over the singular values of LoRA adapters.

The public names load on first use, so that ``import esalign`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esalign.errors import EsalignError as EsalignError
    from esalign.loop import search as search
    from esalign.optimizers.steered import Steered as Steered
    from esalign.protocols import Backend as Backend
    from esalign.protocols import Fitness as Fitness
    from esalign.protocols import Optimizer as Optimizer
    from esalign.protocols import Space as Space
    from esalign.registry import load_backend as load_backend
    from esalign.registry import make_optimizer as make_optimizer
    from esalign.rewards import load_reward as load_reward
    from esalign.space import SvdLora as SvdLora
    from esalign.space import make_space as make_space
    from esalign.types import Completion as Completion
    from esalign.types import Evaluation as Evaluation
    from esalign.types import Example as Example
    from esalign.types import Sampling as Sampling

_HOMES = {
    "Backend": "protocols",
    "Completion": "types",
    "EsalignError": "errors",
    "Evaluation": "types",
    "Example": "types",
    "Fitness": "protocols",
    "Optimizer": "protocols",
    "Sampling": "types",
    "Space": "protocols",
    "Steered": "optimizers.steered",
    "SvdLora": "space",
    "load_backend": "registry",
    "load_reward": "rewards",
    "make_optimizer": "registry",
    "make_space": "space",
    "search": "loop",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (a list of names, kept in one place)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'esalign' has no attribute {name!r}")
    return getattr(import_module(f"esalign.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
