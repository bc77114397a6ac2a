"""The search space of ESSA: offsets to the singular values of a LoRA adapter's factors (arXiv 2507.04453).

Each adapted layer has an update ``scaling * B @ A``. Each factor is decomposed on its own,

    A = U_A diag(s_A) V_A^T        B = U_B diag(s_B) V_B^T

and U, V stay frozen. A search vector x holds, for the top ``fraction`` of each factor's singular values, an offset in
units of that factor's root mean square singular value, so that one step size fits every layer and model:

    A' = U_A diag(s_A + scale_A * x_A) V_A^T        and so for B.

The paper fixes neither units nor how to treat factors of deficient rank. Here directions whose singular value is zero
(below `DEAD` of the factor's largest) are not searched, as the SVD fills them with arbitrary vectors; a factor that is
zero as a whole, as B of a LoRA that was never trained, is refused.
"""

import hashlib
from pathlib import Path

import numpy as np

from esalign.assets import adapter_path
from esalign.errors import AdapterError, ConfigError
from esalign.registry import find_format
from esalign.space.adapter import Adapter, read_adapter
from esalign.space.factors import Factor, FactoredSpace, SvdModule
from esalign.types import Array

DEAD = 1e-6


class SvdLora(FactoredSpace):
    """The space of search vectors around one LoRA adapter. The zero vector is the adapter itself, bit for bit.

    Args:
        adapter: the start, e.g. from `esalign.adapter_io.read_adapter`.
        fraction: share of each factor's singular values that is searched, in (0, 1], rounded down per factor.

    Attributes:
        dim: length of the search vector; at fraction 1 and full rank, the sum of 2 * rank over the adapted layers.
        modules: the adapted layers, in the order of the search vector: each layer's A, then its B.

    Raises:
        AdapterError: a factor is zero, or rounding leaves nothing to search.
        ConfigError: fraction is out of range.
    """

    def __init__(self, adapter: Adapter, *, fraction: float = 1.0) -> None:
        if not 0.0 < fraction <= 1.0:
            raise ConfigError(f"fraction is {fraction!r}, expected a number in (0, 1]")
        self.fraction = fraction
        modules, start = [], 0
        for module in adapter.modules:
            if module.rank > min(module.A.shape[1], module.B.shape[0]):
                raise AdapterError(f"{module.name} has rank {module.rank}, above its width: train it with a lower rank")
            a = _decompose(module.A, fraction, start, f"A of {module.name}")
            b = _decompose(module.B, fraction, a.start + a.count, f"B of {module.name}")
            start = b.start + b.count
            modules.append(SvdModule(module.name, module.scaling, a, b))
        if not start:
            rank = max(module.rank for module in adapter.modules)
            raise AdapterError(
                f"fraction {fraction} of rank {rank} rounds down to 0 singular values per factor, so there is nothing "
                f"to search: use a fraction of at least {1 / rank:.3g}"
            )
        super().__init__(adapter, modules, _fingerprint(adapter, fraction, start))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, fraction: float = 1.0) -> "SvdLora":
        """Make the space of a PEFT LoRA adapter: a local folder, or a repository of the Hugging Face hub."""
        return cls(read_adapter(folder), fraction=fraction)


def open_svd_lora(*, model: str | None, adapter: str | None, fraction: float = 1.0) -> SvdLora:
    """Open the space that a configuration names ``svd-lora``.

    Args:
        model: the base model, which the adapter in some formats (GGUF) is read by.
        adapter: a PEFT folder or hub id, ``embedded``, or a file in a format of an installed engine.
        fraction: see `SvdLora`.

    Raises:
        ConfigError: no adapter.
        AdapterError: the adapter cannot be used.
    """
    if adapter is None:
        raise ConfigError(
            "model.adapter is not set, but its singular values are what this space searches: make an adapter with "
            "`esalign sft`, or search the model's own weights with space.name=base-svd"
        )
    return SvdLora(read_any_adapter(adapter, model), fraction=fraction)


def read_any_adapter(adapter: str, model: str | None) -> Adapter:
    """Read an adapter in any format that esalign or an installed engine knows.

    Args:
        adapter: a PEFT folder or hub id, ``embedded``, or a file in a format of an installed engine.
        model: the base model, which the adapter in some formats (GGUF) is read by.

    Raises:
        AdapterError: it is not there, broken, or of a kind that has no factors.
    """
    adapter = adapter_path(adapter)
    form = find_format(adapter)
    if form and model is None:
        raise AdapterError(f"adapter '{adapter}' is read by its model: give the model's file too")
    return form.read_adapter(adapter, model) if form else read_adapter(adapter)


def _decompose(factor: Array, fraction: float, start: int, label: str) -> Factor:
    """Decompose one factor in float64 and count the singular values to search."""
    U, s, Vt = np.linalg.svd(factor.astype(np.float64), full_matrices=False)
    if not s[0] > 0.0:
        raise AdapterError(
            f"{label} is zero, so the adapter changes nothing there: make a warm start with `esalign sft`, or leave "
            "the adapter out, which searches the model's own weights"
        )
    alive = int((s > DEAD * s[0]).sum())
    count = min(int(fraction * len(s) + 1e-9), alive)
    scale = float(np.sqrt(np.mean(s**2)))
    return Factor(U.astype(np.float32), s.astype(np.float32), Vt.astype(np.float32), scale, start, count)


def _fingerprint(adapter: Adapter, fraction: float, dim: int) -> str:
    """Hash the adapter and the fraction."""
    digest = hashlib.sha256(f"{fraction!r} {dim}".encode())
    for module in adapter.modules:
        digest.update(f"{module.name} {module.scaling!r}".encode())
        digest.update(np.ascontiguousarray(module.A, dtype="<f4").tobytes())
        digest.update(np.ascontiguousarray(module.B, dtype="<f4").tobytes())
    return digest.hexdigest()
