"""LoRA for a whole population at once: every sequence of a batch has its own singular values.

    y = W x + scaling * U_B ( s_B * ( M ( s_A * ( V_A^T x ) ) ) )        M = V_B^T U_A

U_B, M and V_A are common to all; s_A and s_B differ by row. No weight is ever written.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from esalign.errors import BackendError
from esalign.space import SvdLora, SvdModule
from esalign.types import Array


class SingularValues:
    """The singular values of the rows that are in the batch now, shared by all adapted layers.

    Attributes:
        rows: shape (rows, width): per row the values of A and of B of every module, one after the other.
    """

    def __init__(self) -> None:
        self.rows = torch.empty(0, 0)


class PopulationLinear(nn.Module):
    """A linear layer with the update of each row's candidate added to its output.

    Args:
        base: the layer, quantised or not.
        module: the frozen factors.
        values: where the rows' singular values are found.
        start: column at which this module's values begin; s_A first, then s_B.
        dtype: type of the computation.
        device: where the layer's inputs are.
    """

    def __init__(
        self,
        base: nn.Module,
        module: SvdModule,
        values: SingularValues,
        *,
        start: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.base = base
        self.values = values
        self.span_a = (start, module.rank)
        self.span_b = (start + module.rank, module.rank)
        self.down, self.core, self.up = (
            nn.Buffer(torch.from_numpy(np.ascontiguousarray(matrix)).to(device=device, dtype=dtype), persistent=False)
            for matrix in (
                module.a.Vt.T,  # (in, rank)
                module.core.T,  # (rank, rank)
                module.scaling * module.b.U.T,  # (rank, out)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (rows, tokens, in) to (rows, tokens, out)."""
        rows = self.values.rows[:, None]
        inner = (x @ self.down) * rows.narrow(2, *self.span_a)
        inner = (inner @ self.core) * rows.narrow(2, *self.span_b)
        y: Tensor = self.base(x)
        y.view(-1, y.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), self.up)
        return y


def attach(model: nn.Module, space: SvdLora, *, label: str, dtype: torch.dtype, device: torch.device) -> SingularValues:
    """Wrap every layer that the space adapts. Returns the table that the wrapped layers read.

    Raises:
        BackendError: a layer is missing, is not linear, or has another shape than the adapter's factors.
    """
    values = SingularValues()
    for start, module in zip(starts(space.modules), space.modules, strict=True):
        base = _find(model, module, label)
        wrapped = PopulationLinear(base, module, values, start=start, dtype=dtype, device=device)
        parent, _, child = module.name.rpartition(".")
        setattr(model.get_submodule(parent), child, wrapped)
    return values


def starts(modules: Sequence[SvdModule]) -> list[int]:
    """Return the column at which each module's singular values begin."""
    ends = np.cumsum([2 * module.rank for module in modules])
    return [0, *ends[:-1].tolist()]


def tabulate(space: SvdLora, candidates: Array) -> Array:
    """Return all singular values of candidates, shape (population, width), float32."""
    pairs = space.singular_values(candidates)
    return np.concatenate([part for pair in pairs for part in pair], axis=1)


def _find(model: nn.Module, module: SvdModule, label: str) -> nn.Module:
    """Return the layer that a module adapts, or say why it does not fit."""
    try:
        base = model.get_submodule(module.name)
    except AttributeError:
        raise BackendError(
            f"the adapter adapts {module.name!r}, which model '{label}' does not have: "
            "use the model that the adapter was trained on"
        ) from None
    shape = _linear_shape(base)
    if shape is None:
        raise BackendError(
            f"the adapter adapts {module.name!r}, which in model '{label}' is a {type(base).__name__}, "
            "expected a linear layer: train the adapter on linear layers only"
        )
    expected = (module.a.Vt.shape[1], module.b.U.shape[0])
    if shape != expected:
        raise BackendError(
            f"the adapter's factors for {module.name!r} map {expected[0]} to {expected[1]} features, but the layer of "
            f"model '{label}' maps {shape[0]} to {shape[1]}: use the model that the adapter was trained on"
        )
    return base


def _linear_shape(layer: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a linear layer, None for any other."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    return None
