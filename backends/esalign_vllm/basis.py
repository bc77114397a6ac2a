"""The frozen factors of a space as vLLM's workers read them: one file of matrices, and a table's row per candidate.

A layer's update is ``up @ diag(s_B) @ core @ diag(s_A) @ down`` with

    down = V_A^T (rank, in)        core = V_B^T U_A (rank, rank)        up = scaling * U_B (out, rank)

and a candidate's row of the table holds s_A, then s_B, of one layer after the other.
"""

import json
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


def write_basis(space: Space, file: Path) -> None:
    """Write the factors of a space to a safetensors file."""
    from safetensors.numpy import save_file

    tensors = {}
    for number, module in enumerate(space.modules):
        tensors[f"{number}.down"] = np.ascontiguousarray(module.a.Vt)
        tensors[f"{number}.core"] = np.ascontiguousarray(module.core)
        tensors[f"{number}.up"] = np.ascontiguousarray(module.scaling * module.b.U, dtype=np.float32)
    save_file(tensors, file, metadata={NAMES: json.dumps([module.name for module in space.modules])})


def tabulate(space: Space, candidates: Array) -> Array:
    """Return all singular values of candidates, shape (population, dim), as float32 (population, width)."""
    return np.concatenate([part for pair in space.singular_values(candidates) for part in pair], axis=1)
