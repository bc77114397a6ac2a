"""LoRA for a whole population over one copy of the factors: what takes the place of vLLM's own LoRA kernels.

    y += ((x V_A * s_A) core^T * s_B) (scaling U_B)^T        s_A, s_B: rows of a table, by the slot of each token

A layer that vLLM has fused from several (q, k and v) is computed at once: their factors side by side, their cores and
U_B as blocks of a matrix. Since only diagonal matrices differ between candidates, tensor parallelism slices the factors
as it slices any LoRA, and the partial sums add up.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esalign_vllm.basis import NAMES


@dataclass(frozen=True)
class LayerFactors:
    """The frozen factors of one adapted layer, or of a part of a layer that vLLM fused, float32.

    Args:
        down: shape (rank, in).
        core: shape (rank, rank).
        up: shape (out, rank), alpha / rank folded in.
        start: column of the table at which s_A begins; s_B follows it.
        offset: first column of the fused layer's output that this part writes.
    """

    down: Tensor
    core: Tensor
    up: Tensor
    start: int
    offset: int = 0

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return int(self.down.shape[0])

    @property
    def columns(self) -> list[int]:
        """A candidate's columns of s_A, then of s_B."""
        return list(range(self.start, self.start + 2 * self.rank))


def read_basis(file: Path) -> dict[str, LayerFactors]:
    """Return the factors that `write_basis` wrote, by the layers' names in the Hugging Face model, in their order."""
    from safetensors import safe_open

    layers: dict[str, LayerFactors] = {}
    start = 0
    with safe_open(file, framework="pt") as content:
        for number, name in enumerate(json.loads(content.metadata()[NAMES])):
            down, core, up = (content.get_tensor(f"{number}.{part}") for part in ("down", "core", "up"))
            layers[name] = LayerFactors(down, core, up, start)
            start += 2 * len(down)
    return layers


def table_columns(parts: Sequence[LayerFactors]) -> list[int]:
    """Return a candidate's columns in the order that a layer's table has them: s_A of all its parts, then s_B."""
    values_a = [column for part in parts for column in part.columns[: part.rank]]
    values_b = [column for part in parts for column in part.columns[part.rank :]]
    return values_a + values_b


class SharedBasis:
    """Stands in for a layer's ``punica_wrapper``, of which linear layers call `add_lora_linear` alone.

    It reads static buffers only, and neither branches on values nor waits for the device, so that it can be traced and
    captured in a graph.

    Args:
        wrapper: vLLM's own; it knows the slot of each token, -1 for tokens without LoRA.
        table: shape (slots + 1, 2 * ranks): this layer's s_A of all parts, then s_B. The last row, which index -1
            finds, stays zero: tokens without LoRA get the base model.
        parts: the layer's parts.
        out: width of the layer's output.
        dtype: type of the layer's output.
    """

    def __init__(
        self, wrapper: Any, table: Tensor, parts: Sequence[LayerFactors], *, out: int, dtype: torch.dtype
    ) -> None:
        self.wrapper = wrapper
        self.slots = wrapper._token_lora_indices  # noqa: SLF001  (static buffer; its public view changes length)
        self.table = table
        self.ranks = sum(part.rank for part in parts)
        device = table.device
        self.down = torch.cat([part.down for part in parts]).T.contiguous().to(device, dtype)
        self.core = torch.block_diag(*(part.core.T for part in parts)).to(device, torch.float32)
        up = torch.zeros(self.ranks, out)
        first = 0
        for part in parts:
            up[first : first + part.rank, part.offset : part.offset + part.up.shape[0]] = part.up.T
            first += part.rank
        self.up = up.to(device, dtype)

    def add_lora_linear(self, y: Tensor, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Add the update to y, shape (tokens, out), in place, for the input x, shape (tokens, in)."""
        x = x.view(-1, x.shape[-1])
        values = self.table[self.slots[: x.shape[0]]]  # (tokens, 2 * ranks)
        inner = (x @ self.down).float() * values[:, : self.ranks]
        inner = (inner @ self.core) * values[:, self.ranks :]
        y.view(-1, y.shape[-1]).addmm_(inner.to(y.dtype), self.up)
        return y

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)


class NoAdapter:
    """Stands in for the ``punica_wrapper`` of a layer that the adapter leaves alone: nothing is added."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper

    def add_lora_linear(self, y: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return y as it is."""
        return y

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)
