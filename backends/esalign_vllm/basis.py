"""The frozen factors of a space as vLLM's workers read them: one file of matrices, and a table's row per candidate.

A layer's update is ``up @ diag(s_B) @ core @ diag(s_A) @ down`` with

    down = V_A^T (rank, in)        core = V_B^T U_A (rank, rank)        up = scaling * U_B (out, rank)

and a candidate's row of the table holds s_A, then s_B, of one layer after the other.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esalign.protocols import Space
from esalign.types import Array

SHARED_BASIS, SLOTS, FILES = "shared-basis", "slots", "files"
MODES = (SHARED_BASIS, SLOTS, FILES)
"""How candidates reach the engine, the best first; each needs less of vLLM's private parts than the one before."""

BARE = "bare"
"""The base model alone, without a space."""

NAMES = "names"


@dataclass(frozen=True)
class LayerFactors:
    """The frozen factors of one adapted layer, float32.

    Args:
        down: shape (rank, in).
        core: shape (rank, rank).
        up: shape (out, rank), alpha / rank folded in.
        start: column of the table at which s_A begins; s_B follows it.
    """

    down: Array
    core: Array
    up: Array
    start: int

    @property
    def rank(self) -> int:
        """Rank of the layer's update."""
        return len(self.down)


def write_basis(space: Space, file: Path) -> None:
    """Write the factors of a space to a safetensors file."""
    from safetensors.numpy import save_file

    tensors = {}
    for number, module in enumerate(space.modules):
        tensors[f"{number}.down"] = np.ascontiguousarray(module.a.Vt)
        tensors[f"{number}.core"] = np.ascontiguousarray(module.core)
        tensors[f"{number}.up"] = np.ascontiguousarray(module.scaling * module.b.U, dtype=np.float32)
    save_file(tensors, file, metadata={NAMES: json.dumps([module.name for module in space.modules])})


def read_basis(file: Path) -> dict[str, LayerFactors]:
    """Return the factors by the names of the layers in the Hugging Face model, in the order of the space."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as content:
        names = json.loads(content.metadata()[NAMES])
        return dict(_number_layers(names, {key: content.get_tensor(key) for key in content.keys()}))  # noqa: SIM118  (no mapping)


def _number_layers(names: list[str], tensors: Mapping[str, Array]) -> Iterator[tuple[str, LayerFactors]]:
    start = 0
    for number, name in enumerate(names):
        down, core, up = (tensors[f"{number}.{part}"] for part in ("down", "core", "up"))
        yield name, LayerFactors(down, core, up, start)
        start += 2 * len(down)


def tabulate(space: Space, candidates: Array) -> Array:
    """Return all singular values of candidates, shape (population, dim), as float32 (population, width)."""
    return np.concatenate([part for pair in space.singular_values(candidates) for part in pair], axis=1)
