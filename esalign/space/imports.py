"""Libraries, imported without what nothing here uses; by one thread at a time."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any

_LOCK = RLock()  # held while modules and answers are replaced

# What transformers asks before it imports what no engine uses, and the modules that keep the answer.
_UNUSED = {
    "is_sklearn_available": "transformers.generation.candidate_generator",  # assisted decoding; brings pandas too
    "is_scipy_available": "transformers.loss.loss_utils",  # a solver for losses of object detection
    "is_torch_distributed_available": "transformers.modeling_utils",  # its tensor parallelism; brings sympy
}
_MODULES = (*_UNUSED.values(), "transformers.masking_utils")
_COMPILER = "torch._dynamo"
_COMPILER_INDEXING = f"{_COMPILER}._trace_wrapped_higher_order_op"
# What cellpylib imports: its cellular automata are drawn nowhere.
_PLOTTING = (
    "matplotlib",
    "matplotlib.animation",
    "matplotlib.collections",
    "matplotlib.pyplot",
    "mpl_toolkits",
    "mpl_toolkits.mplot3d",
)


def import_transformers() -> Any:
    """Return transformers, whose models are imported without what no engine uses: up to 240 MiB.

    It must come before any of its Auto classes is used, as these import the models' code. In this process transformers
    then does without scikit-learn in assisted decoding, and its own tensor parallelism; what the program imported
    before has them still.
    """
    import transformers

    with _LOCK:
        if any(module not in sys.modules for module in _MODULES):
            _import_lean(transformers.utils)
    return transformers


def _import_lean(utils: Any) -> None:
    import torch.distributed

    answers = dict.fromkeys(_UNUSED, lambda: False)
    with (
        hushed(),
        _replaced(vars(utils), answers),
        _replaced(vars(utils.import_utils), answers),
        _replaced(sys.modules, {} if _needs_compiler() else _stand_in_compiler()),
    ):
        for module in _MODULES:
            with suppress(ImportError, AttributeError):  # another version of transformers, which costs memory alone
                import_module(module)
    vars(torch.distributed).setdefault("__getattr__", _import_on_use)
    for name in [name for name in sys.modules if name.startswith("transformers.loss.")]:
        vars(sys.modules[name]).setdefault("linear_sum_assignment", _assign)


def import_peft() -> Any:
    """Return peft, which then does not look for tensors of the parallelism that transformers is imported without."""
    import_transformers()
    with _LOCK:
        import peft
        from peft.tuners import tuners_utils

    if "torch.distributed.tensor" not in sys.modules:
        vars(tuners_utils)["_torch_supports_distributed"] = False
    return peft


def _import_on_use(name: str) -> ModuleType:
    """Return ``torch.distributed.tensor``, which libraries use as if transformers had always imported it."""
    if name != "tensor":
        raise AttributeError(f"module 'torch.distributed' has no attribute {name!r}")
    return import_module("torch.distributed.tensor")


def _assign(*args: Any, **kwargs: Any) -> Any:
    """Call scipy's solver, which the losses of object detection use."""
    return import_module("scipy.optimize").linear_sum_assignment(*args, **kwargs)


def _needs_compiler() -> bool:
    """Tell whether torch's compiler is there, or will be: transformers imports torchao where it is installed."""
    return _COMPILER in sys.modules or find_spec("torchao") is not None


def _stand_in_compiler() -> dict[str, ModuleType]:
    """Return what modules of transformers use of torch's compiler when they are imported, by the names of its modules.

    They mark functions for it. Of the marks, ``allow_in_graph`` is lost.
    """
    from torch._compile import _disable_dynamo

    def assume_constant_result(function: Any) -> Any:
        vars(function)["_dynamo_marked_constant"] = True
        return function

    compiler: Any = ModuleType(_COMPILER)
    compiler.__path__ = []
    compiler.disable = lambda function=None, recursive=True, **_: _disable_dynamo(function, recursive)
    compiler.allow_in_graph = lambda function: function
    compiler.assume_constant_result = assume_constant_result
    indexing: Any = ModuleType(_COMPILER_INDEXING)
    indexing.TransformGetItemToIndex = lambda: import_module(_COMPILER_INDEXING).TransformGetItemToIndex()
    return {_COMPILER: compiler, _COMPILER_INDEXING: indexing}


def import_pycma() -> Any:
    """Return pycma, without what it plots and models fitness with: 47 MiB."""
    with _LOCK:
        if "cma" in sys.modules:
            return import_module("cma")
        left_out = [name for name in ("matplotlib", "scipy.stats") if name not in sys.modules]
        with _replaced(sys.modules, dict.fromkeys(left_out)), warnings.catch_warnings():  # None: no such module
            warnings.simplefilter("ignore")
            return import_module("cma")


def import_reasoning_gym() -> Any:
    """Return reasoning-gym, without what a library of two of its tasks would plot with: 35 MiB."""
    with _LOCK:
        if "reasoning_gym" in sys.modules:
            return import_module("reasoning_gym")
        stand_ins = {} if "matplotlib" in sys.modules else {name: ModuleType(name) for name in _PLOTTING}
        for module in stand_ins.values():
            vars(module)["Axes3D"] = None
        with _replaced(sys.modules, stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of that library
            return import_module("reasoning_gym")


@contextmanager
def hushed() -> Iterator[None]:
    """Hide warnings, and what torchao, which transformers imports, says of missing kernels, while the block runs."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _replaced(names: dict[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Hold other values under names of a module, or modules under names of ``sys.modules``, while the block runs."""
    kept = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        for name in values:
            names.pop(name, None)
        names.update(kept)
