"""A few numbers that move a whole space: a fixed map from a short search vector to a space's own.

TinyLoRA (arXiv 2602.04118) reports that a handful of trained numbers can be enough. Here

    x = sqrt(dim / tie) * Q z        Q (dim, tie) with orthonormal columns, drawn from a seed

so that a step of size sigma in z moves x, per entry, by sigma on average, and one sigma suits a space tied or not.
"""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esalign.errors import ConfigError
from esalign.protocols import Space
from esalign.seeds import Use, generator
from esalign.types import Array, as_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esalign.space import Adapter, SvdModule


class TiedSpace:
    """A space moved by few numbers.

    Args:
        space: the space that is moved.
        tie: the length of the search vector; with ``over="layers"``, of the part that each adapted layer has.
        over: ``all``: every number moves all of the space; ``layers``: each adapted layer has its own.
        seed: of the map.

    Raises:
        ConfigError: tie is below 1, or above what it ties; or a negative seed.
    """

    def __init__(self, space: Space, *, tie: int, over: str = "all", seed: int = 0) -> None:
        if over not in ("all", "layers"):
            raise ConfigError(f"tie_over is {over!r}, expected 'all' or 'layers'")
        if seed < 0:
            raise ConfigError(f"tie_seed is {seed}, expected at least 0")
        sizes = [space.dim] if over == "all" else [module.a.count + module.b.count for module in space.modules]
        if sum(sizes) != space.dim:
            raise ConfigError(
                "tie_over 'layers' needs a space whose layers have numbers of their own: set tie_over: all"
            )
        if not 1 <= tie <= min(sizes):
            what = "the space has" if over == "all" else "the smallest layer of the space has"
            raise ConfigError(f"tie is {tie}, expected 1 to {min(sizes)}, as {what} no more numbers")
        self._space = space
        self._maps = [_draw_map(size, tie, seed, number) for number, size in enumerate(sizes)]
        self.dim = tie * len(sizes)
        self.modules: Sequence[SvdModule] = space.modules
        self.fingerprint = hashlib.sha256(f"{space.fingerprint} {tie} {over} {seed}".encode()).hexdigest()

    def untie(self, candidates: Array) -> Array:
        """Return what candidates (population, dim) mean in the space that is moved, (population, its dim)."""
        parts = np.split(as_candidates(candidates, self.dim), len(self._maps), axis=1)
        return np.concatenate([part @ up for part, up in zip(parts, self._maps, strict=True)], axis=1)

    def singular_values(self, candidates: Array) -> list[tuple[Array, Array]]:
        """Return per module s_A and s_B of candidates (population, dim), each (population, rank), float32."""
        return self._space.singular_values(self.untie(candidates))

    def fold(self, vector: Array) -> "Adapter":
        """Return the plain LoRA adapter that a search vector, shape (dim,), stands for."""
        return self._space.fold(self.untie(np.asarray(vector)[None])[0])

    def save_pretrained(self, vector: Array, folder: str | Path) -> Path:
        """Write that adapter as a PEFT folder. Returns the folder."""
        return self._space.save_pretrained(self.untie(np.asarray(vector)[None])[0], folder)


def _draw_map(size: int, tie: int, seed: int, number: int) -> Array:
    """Return sqrt(size / tie) * Q^T, shape (tie, size), Q with orthonormal columns."""
    Q, _ = np.linalg.qr(generator(seed, Use.TIE, number).standard_normal((size, tie)))
    scaled: Array = math.sqrt(size / tie) * Q.T
    return scaled
