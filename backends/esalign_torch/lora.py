"""LoRA for a whole population at once: every sequence of a batch has its own singular values.

    y = W x + scaling * U_B ( s_B * ( M ( s_A * ( V_A^T x ) ) ) )        M = V_B^T U_A

U_B, M and V_A are common to all; s_A and s_B differ by row. No weight is ever written.

Layers that read the same tensor, as q, k and v do, are computed together up to s_B: with V_A^T stacked and M as blocks
on a diagonal. That leaves a third of the small operations, which are what the update costs on a CPU.
"""

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from esalign.engines.layers import find_adapted
from esalign.engines.loading import LoadedModel
from esalign.errors import BackendError
from esalign.protocols import Space
from esalign.space import SvdModule
from esalign.types import Array


class SingularValues:
    """The singular values of the rows that are in the batch now, shared by all adapted layers.

    Attributes:
        factors: per group of layers s_A and s_B, each of shape (rows, 1, rank of the group).
    """

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.sizes: list[int] = []
        self.factors: tuple[Tensor, ...] = ()

    def arrange(self, groups: Sequence[Sequence[int]], ranks: Sequence[int]) -> None:
        """Fix the order of the table's columns: by group, and in each group s_A of all its modules before s_B."""
        self.groups = [list(group) for group in groups]
        self.sizes = [sum(ranks[place] for place in group) for group in groups for _ in "AB"]

    def tabulate(self, space: Space, candidates: Array) -> Array:
        """Return all singular values of candidates, shape (population, width), float32."""
        pairs = space.singular_values(candidates)
        # One candidate's columns: for each group s_A of all its modules, then s_B; each part is (population, rank).
        columns = [pairs[place][factor] for group in self.groups for factor in (0, 1) for place in group]
        return np.concatenate(columns, axis=1)

    def show(self, rows: Tensor) -> None:
        """Let the layers see the values of a batch's rows, shape (rows, width)."""
        self.factors = rows[:, None].split(self.sizes, dim=2)


class _SharedInput(nn.Module):
    """The part of the update that layers with one input have in common: s_B * ( M ( s_A * ( V_A^T x ) ) ).

    Args:
        modules: the frozen factors of these layers.
        values: where the rows' singular values are found.
        place: number of the group in the table.
        dtype: type of the computation.
        device: where the layers' input is.
    """

    def __init__(
        self,
        modules: Sequence[SvdModule],
        values: SingularValues,
        *,
        place: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.values = values
        self.place = 2 * place
        self.label = f"the adapted layer {modules[0].name!r}"
        down = torch.from_numpy(np.concatenate([module.a.Vt.T for module in modules], axis=1))  # (in, rank)
        # M^T of each layer is a block: no layer's V_A^T x may leak into another's update; (rank, rank) of the group.
        core = torch.block_diag(*(torch.from_numpy(np.ascontiguousarray(module.core.T)) for module in modules))
        self.down = nn.Buffer(down.to(device=device, dtype=dtype), persistent=False)
        self.core = nn.Buffer(core.to(device=device, dtype=dtype), persistent=False)  # (rank, rank)
        self._input: Callable[[], Tensor | None] = lambda: None
        self._output = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (rows, ..., tokens, in) to (rows * tokens, rank), once for all layers that bring one x."""
        if self._input() is not x:
            s_a, s_b = self.values.factors[self.place : self.place + 2]  # each (rows, 1, rank): one of every row
            if x.ndim < 3 or len(x) != len(s_a):
                raise BackendError(
                    f"{self.label} gets a tensor of shape {tuple(x.shape)}, expected (rows, tokens, features) of "
                    f"{len(s_a)} rows: backend 'torch' cannot adapt layers that get the tokens of all rows as one: "
                    "leave it out of the adapter, or of space.targets"
                )
            rows = x.view(len(x), -1, x.shape[-1])  # some layers see one more dimension, of size one
            inner = (((rows @ self.down) * s_a) @ self.core) * s_b
            self._output = inner.view(-1, inner.shape[-1])
            self._input = weakref.ref(x)  # weak, so that the activation can be freed; None, when it was, is no x
        return self._output


class _PopulationLinear(nn.Module):
    """A linear layer with the update of each row's candidate added to its output.

    Args:
        base: the layer, quantised or not.
        module: the frozen factors.
        shared: the part of the update that it has in common with others.
        start: where its own columns begin in the common part.
        dtype: type of the computation.
        device: where the layer's inputs are.
    """

    def __init__(
        self,
        base: nn.Module,
        module: SvdModule,
        shared: _SharedInput,
        *,
        start: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.base = base
        self.shared = shared
        self.columns = slice(start, start + module.rank)
        up = torch.from_numpy(np.ascontiguousarray(module.scaling * module.b.U.T))  # (rank, out)
        self.up = nn.Buffer(up.to(device=device, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (rows, ..., tokens, in) to (rows, ..., tokens, out)."""
        inner = self.shared(x)[:, self.columns]  # (rows * tokens, rank), scaled by s_B
        y: Tensor = self.base(x)  # (rows, ..., tokens, out), fresh memory, so it may be added to in place
        y.view(-1, y.shape[-1]).addmm_(inner, self.up)
        return y


def attach(loaded: LoadedModel, space: Space, *, probe: Callable[[], object], dtype: torch.dtype) -> SingularValues:
    """Wrap every layer that the space adapts. Returns the table that the wrapped layers read.

    Args:
        loaded: the base model; it is changed.
        space: the frozen factors.
        probe: runs the model once, to find out which layers read the same tensor.
        dtype: type of the computation.

    Raises:
        BackendError: a layer is missing, is not linear, or has another shape than the adapter's factors.
    """
    model, device = loaded.model, loaded.model.device
    names, layers = zip(*find_adapted(model, space, loaded.label), strict=True)
    groups = _group_by_input(layers, probe)
    values = SingularValues()
    values.arrange(groups, [module.rank for module in space.modules])
    for place, group in enumerate(groups):
        modules = [space.modules[member] for member in group]
        shared = _SharedInput(modules, values, place=place, dtype=dtype, device=device)
        start = 0
        for module, member in zip(modules, group, strict=True):
            wrapped = _PopulationLinear(layers[member], module, shared, start=start, dtype=dtype, device=device)
            parent, _, child = names[member].rpartition(".")
            setattr(model.get_submodule(parent), child, wrapped)
            start += module.rank
    return values


def _group_by_input(layers: Sequence[nn.Module], probe: Callable[[], object]) -> list[list[int]]:
    """Return which layers read one and the same tensor in a forward pass, as lists of their places."""
    seen: list[tuple[Tensor, list[int]]] = []  # holds the tensors, so that no two of them can be one object

    def note(place: int, x: Tensor) -> None:
        for tensor, group in seen:
            if tensor is x:
                group.append(place)
                return
        seen.append((x, [place]))

    handles = [
        layer.register_forward_pre_hook(lambda _layer, args, place=place: note(place, args[0]))
        for place, layer in enumerate(layers)
    ]
    try:
        probe()
    finally:
        for handle in handles:
            handle.remove()
    met = {place for _, group in seen for place in group}
    return [group for _, group in seen] + [[place] for place in range(len(layers)) if place not in met]
