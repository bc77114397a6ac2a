"""What engines hold of a space: frozen factors of each adapted layer, and singular values that candidates move.

Each adapted layer has an update ``scaling * B @ A`` whose factors are decomposed,

    A = U_A diag(s_A) V_A^T        B = U_B diag(s_B) V_B^T

U and V stay frozen. A search vector x holds offsets to some of the singular values, in units of their own:

    A' = U_A diag(s_A + scale_A * x_A) V_A^T        and so for B.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from esalign.space.adapter import Adapter, write_adapter
from esalign.types import Array, as_candidates


@dataclass(frozen=True)
class Factor:
    """The SVD of one LoRA factor, ``U @ diag(s) @ Vt``, and the part of the search vector that moves it.

    Args:
        U: shape (rows, rank), float32, orthonormal columns.
        s: shape (rank,), float32.
        Vt: shape (rank, columns), float32, orthonormal rows.
        scale: unit of the search vector.
        start: index of the factor's first entry in the search vector.
        count: number of its entries: it moves ``s[:count]``.
    """

    U: Array
    s: Array
    Vt: Array
    scale: float
    start: int
    count: int


@dataclass(frozen=True)
class SvdModule:
    """One adapted layer, whose update is ``scaling * B @ A``.

    Args:
        name: the layer's name in the base model, e.g. ``model.layers.0.self_attn.q_proj``.
        scaling: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
        a: the factor A, with U (rank, rank) and Vt (rank, in).
        b: the factor B, with U (out, rank) and Vt (rank, rank).
    """

    name: str
    scaling: float
    a: Factor
    b: Factor

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return len(self.a.s)

    @cached_property
    def core(self) -> Array:
        """``M = V_B^T U_A``, shape (rank, rank): update = scaling * U_B diag(s_B) M diag(s_A) V_A^T."""
        product: Array = (self.b.Vt.astype(np.float64) @ self.a.U.astype(np.float64)).astype(np.float32)
        return product


class FactoredSpace:
    """Search vectors around a start whose factors are decomposed. The zero vector is the start itself, bit for bit.

    Args:
        adapter: the start.
        modules: its modules, decomposed, in the same order.
        fingerprint: a hash of all that a search vector's meaning depends on.

    Attributes:
        dim: length of the search vector.
        modules: the adapted layers, in the order of the search vector: each layer's A, then its B.
    """

    def __init__(self, adapter: Adapter, modules: Sequence[SvdModule], fingerprint: str) -> None:
        self.adapter = adapter
        self.modules = tuple(modules)
        self.fingerprint = fingerprint
        factors = [factor for module in self.modules for factor in (module.a, module.b)]
        self.dim = sum(factor.count for factor in factors)
        widths = [len(factor.s) for factor in factors]
        # All singular values stand in one row: s_A, then s_B, of one module after the other.
        self._ends = np.cumsum(widths)
        self._values = np.concatenate([factor.s for factor in factors]).astype(np.float64)
        begins = self._ends - widths
        self._columns = np.concatenate([begin + np.arange(f.count) for begin, f in zip(begins, factors, strict=True)])
        self._scale = np.repeat([factor.scale for factor in factors], [factor.count for factor in factors])

    def singular_values(self, candidates: Array) -> list[tuple[Array, Array]]:
        """Return per module s_A and s_B of candidates (population, dim), each (population, rank), float32.

        They may turn negative.
        """
        rows = np.tile(self._values, (len(checked := as_candidates(candidates, self.dim)), 1))
        rows[:, self._columns] += checked * self._scale
        parts = np.split(rows.astype(np.float32), self._ends[:-1], axis=1)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def fold(self, vector: Array) -> Adapter:
        """Return the plain adapter that a search vector, shape (dim,), stands for; same ranks, float32."""
        row = as_candidates(np.asarray(vector)[None], self.dim)[0]
        modules = tuple(
            replace(start, A=_shift(start.A, module.a, row), B=_shift(start.B, module.b, row))
            for start, module in zip(self.adapter.modules, self.modules, strict=True)
        )
        return replace(self.adapter, modules=modules)

    def save_pretrained(self, vector: Array, folder: str | Path) -> Path:
        """Write the search vector's adapter as a plain PEFT folder of the same rank. Returns the folder."""
        return write_adapter(self.fold(vector), folder)


def _shift(start: Array, factor: Factor, row: Array) -> Array:
    """Return start + U[:, :count] diag(offsets) Vt[:count], so that no offset leaves every bit as it was."""
    k = factor.count
    offsets = row[factor.start : factor.start + k] * factor.scale
    delta = (factor.U[:, :k].astype(np.float64) * offsets) @ factor.Vt[:k].astype(np.float64)
    shifted: Array = (start.astype(np.float64) + delta).astype(np.float32)
    return shifted
