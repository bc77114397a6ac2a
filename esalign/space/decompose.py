"""The top of a matrix's singular value decomposition, kept on disk under a hash of the matrix."""

import hashlib
import os
from pathlib import Path

import numpy as np

from esalign.files import write_atomically
from esalign.types import Array

EXACT = 1024
"""Matrices whose shorter side is no longer than this are decomposed exactly."""

OVERSAMPLING = 16  # more directions than are asked for, so that those come out sharp
MOST_ROUNDS = 24
CONVERGED = 1e-5  # relative change of the singular values from one round to the next
METHOD = "1"  # part of the cache's names: another method, another number

Svd = tuple[Array, Array, Array]
"""U (out, rank), S (rank,) and Vt (rank, in), float32."""


def top_svd(matrix: Array, rank: int) -> Svd:
    """Return the top singular directions of a matrix (out, in), exact or by subspace iteration.

    The iteration is the randomised one of Halko, Martinsson and Tropp (arXiv 0909.4061, algorithm 4.4), repeated until
    the singular values stand still.
    """
    if min(matrix.shape) <= EXACT:
        U, S, Vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    else:
        W = np.ascontiguousarray(matrix, dtype=np.float32)
        width = min(rank + OVERSAMPLING, *W.shape)
        start = np.random.default_rng(0).standard_normal((W.shape[1], width), dtype=np.float32)
        basis, before = np.linalg.qr(W @ start)[0], np.zeros(rank)
        for _ in range(MOST_ROUNDS):
            rows, _ = np.linalg.qr(W.T @ basis)  # (in, width)
            basis, triangle = np.linalg.qr(W @ rows)  # (out, width)
            S = np.linalg.svd(triangle, compute_uv=False)[:rank]
            if np.all(np.abs(S - before) <= CONVERGED * S):
                break
            before = S
        small, S, Vt = np.linalg.svd(basis.T.astype(np.float64) @ W.astype(np.float64), full_matrices=False)
        U = basis @ small
    return _top(U, S, Vt, rank)


def cached_svd(matrix: Array, rank: int) -> tuple[Svd, str]:
    """Return `top_svd`, from disk where an equal matrix was decomposed before; and the matrix's hash."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    whole = np.ascontiguousarray(matrix, dtype="<f4")
    digest = hashlib.sha256(str(whole.shape).encode() + whole.tobytes()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("ESALIGN_CACHE") or Path(home) / "esalign")
    file = cache.expanduser() / "svd" / f"{digest[:32]}-{rank}-{METHOD}.safetensors"
    try:
        kept = load_file(file)
        return (kept["U"], kept["S"], kept["Vt"]), digest
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or cut short by a full disk: made anew
    U, S, Vt = top_svd(whole, rank)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({"U": U, "S": S, "Vt": Vt}))
    except OSError:
        pass  # a cache that cannot be written costs time, not the run
    return (U, S, Vt), digest


def _top(U: Array, S: Array, Vt: Array, rank: int) -> Svd:
    def plain(array: Array) -> Array:
        return np.ascontiguousarray(array, dtype=np.float32)

    return plain(U[:, :rank]), plain(S[:rank]), plain(Vt[:rank])
