"""Models on torch's meta device, where tensors have a shape and no values."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from esalign.space.imports import import_transformers

_ATEN = torch.ops.aten
_RANGES = (_ATEN.arange, _ATEN.linspace)
_BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_MOST = 1 << 20
"""The most numbers of a tensor that is computed with: tables of positions have fewer, weights may have more."""


def make_skeleton(config: Any) -> Any:
    """Return the model of a transformers configuration on the meta device: its layers and shapes, no weights."""
    transformers = import_transformers()
    with ShapesByCPU(), torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


class ShapesByCPU(TorchDispatchMode):
    """Within it, what is computed on the meta device gets its shape from the same computation on the CPU.

    torch itself finds shapes in Python, for which it imports its compiler and sympy: 100 MiB, for a table of rotary
    frequencies. Results are on the meta device and without values, as before.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, to tell it not to look in here

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator of torch."""
        given = dict(kwargs or {})
        operator = func.overloadpacket
        on_meta = [leaf for leaf in tree_leaves((args, given)) if _is_on_meta(leaf)]
        fills = operator.__name__.endswith("_")
        if on_meta and fills and torch.Tag.nondeterministic_seeded in func.tags:
            return args[0]  # which chance would fill
        device = given.get("device")
        to_meta = bool(on_meta) if device is None else torch.device(device).type == "meta"
        computed = on_meta or operator in _RANGES if to_meta else operator is _ATEN.empty_like
        shares = func.is_view or fills or "out" in given
        if not computed or shares or _BY_VALUE & set(func.tags) or any(tensor.numel() > _MOST for tensor in on_meta):
            return func(*args, **given)
        try:
            result = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, given))
        except (RuntimeError, IndexError):  # as where a number that stands for a value is no index
            return func(*args, **given)
        return tree_map(_on_meta, result) if to_meta else result


def _is_on_meta(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_meta


def _on_cpu(leaf: Any) -> Any:
    if _is_on_meta(leaf):
        return torch.ones(leaf.shape, dtype=leaf.dtype)
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf


def _on_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf
