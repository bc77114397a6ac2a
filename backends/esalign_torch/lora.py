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

    Args:
        sizes: number of values of each factor: A and B of the first module, A and B of the second, and so on.
    """

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        self.sizes = list(sizes)
        self.factors: tuple[Tensor, ...] = ()

    def show(self, rows: Tensor) -> None:
        """Let the layers see the values of a batch's rows, shape (rows, width)."""
        self.factors = rows[:, None].split(self.sizes, dim=2)


class PopulationLinear(nn.Module):
    """A linear layer with the update of each row's candidate added to its output.

    Args:
        base: the layer, quantised or not.
        module: the frozen factors.
        values: where the rows' singular values are found.
        place: number of the module in the space.
        dtype: type of the computation.
        device: where the layer's inputs are.
    """

    def __init__(
        self,
        base: nn.Module,
        module: SvdModule,
        values: SingularValues,
        *,
        place: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.base = base
        self.values = values
        self.place = 2 * place
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
        s_a, s_b = self.values.factors[self.place : self.place + 2]
        inner = (((x @ self.down) * s_a) @ self.core) * s_b
        y: Tensor = self.base(x)
        y.view(-1, y.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), self.up)
        return y


def attach(model: nn.Module, space: SvdLora, *, label: str, dtype: torch.dtype, device: torch.device) -> SingularValues:
    """Wrap every layer that the space adapts. Returns the table that the wrapped layers read.

    Raises:
        BackendError: a layer is missing, is not linear, or has another shape than the adapter's factors.
    """
    values = SingularValues([module.rank for module in space.modules for _ in "AB"])
    for place, module in enumerate(space.modules):
        base = _find(model, module, label)
        wrapped = PopulationLinear(base, module, values, place=place, dtype=dtype, device=device)
        parent, _, child = module.name.rpartition(".")
        setattr(model.get_submodule(parent), child, wrapped)
    return values


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
