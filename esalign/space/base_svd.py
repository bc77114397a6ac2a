"""A space that needs no adapter: the singular directions of the base model's own weights.

For each target W = U S V^T, and r of its directions, the update of a search vector x is

    U_r diag(scale * x) V_r^T        scale = rms(S_r) / sqrt(number of targets)

so that the zero vector is the model itself, bit for bit, and one step size suits models of few layers and of many:
random changes of the layers add up as their squares do. Engines get it as factors of the usual kind:
V_A = V_r, s_A = 1, M = I, U_B = U_r and s_B = scale * x.
"""

import hashlib

import numpy as np

from esalign.assets import model_path
from esalign.errors import AdapterError, BackendError, ConfigError
from esalign.space.adapter import Adapter, LoraModule, layer_order
from esalign.space.adapter_config import plain_config
from esalign.space.decompose import Svd, cached_svd
from esalign.space.factors import Factor, FactoredSpace, SvdModule
from esalign.space.targets import choose_layers
from esalign.space.weights import open_weights
from esalign.types import Array


class BaseSvd(FactoredSpace):
    """The space of search vectors along the singular directions of a model's own weights.

    Args:
        model: a folder or Hugging Face id with safetensors weights, or a GGUF file.
        adapter: must be None: there is none to start from.
        rank: directions per layer.
        targets: last parts of layers' names, as PEFT's target_modules; or ``all-linear``; None for the linear layers of
            attention.
        layers: numbers of the blocks; None for all.
        skip: leave out so many of the largest directions, and take the next ones.

    Raises:
        BackendError: the model's weights cannot be read, or are not finite.
        AdapterError: a layer has fewer directions than are asked for.
        ConfigError: an option is out of range, or names no layer.
    """

    sigma = 1.5
    """First step size that suits the space; see docs/spaces.md for how it was measured."""

    def __init__(
        self,
        model: str | None,
        adapter: str | None = None,
        *,
        rank: int = 8,
        targets: str | list[str] | None = None,
        layers: list[int] | None = None,
        skip: int = 0,
    ) -> None:
        if adapter is not None:
            raise ConfigError(
                f"space 'base-svd' starts from the model alone, got the adapter '{adapter}': leave model.adapter out, "
                "take space 'svd-lora', or merge the adapter into the model first"
            )
        if model is None:
            raise ConfigError("space 'base-svd' needs the model, whose weights it decomposes")
        for name, value, least in (("rank", rank, 1), ("skip", skip, 0)):
            if value < least:
                raise ConfigError(f"space 'base-svd': {name} is {value}, expected at least {least}")
        weights = open_weights(model_path(model))
        names = choose_layers(sorted(weights.names, key=layer_order), targets, layers, label=f"model '{model}'")
        digest = hashlib.sha256(f"base-svd {rank} {skip} rms".encode())
        modules: list[SvdModule] = []
        for name in names:
            matrix = weights.read(name)
            _check(matrix, name, rank, skip)
            (U, S, Vt), weights_hash = cached_svd(matrix, rank + skip)
            digest.update(f"{name} {weights_hash}".encode())
            part = U[:, skip:], S[skip:], Vt[skip:]
            modules.append(_make_module(name, part, layers=len(names), start=rank * len(modules)))
        start = Adapter(
            plain_config(str(model), names, rank=rank, alpha=rank), tuple(_start_of(module) for module in modules)
        )
        super().__init__(start, modules, digest.hexdigest())


def _check(matrix: Array, name: str, rank: int, skip: int) -> None:
    if rank + skip > min(matrix.shape):
        after = f" after the first {skip}" if skip else ""
        raise AdapterError(
            f"{name} is {matrix.shape[0]} x {matrix.shape[1]}, so it has no {rank} directions{after}: lower rank or "
            "skip, or leave it out of targets"
        )
    if not np.isfinite(matrix).all():
        raise BackendError(f"{name} of the model holds numbers that are not finite: download or convert it again")


def _make_module(name: str, svd: Svd, *, layers: int, start: int) -> SvdModule:
    """Return U diag(0) I diag(1) Vt, whose zeros the search vector moves."""
    U, S, Vt = svd
    rank = len(S)
    one = np.eye(rank, dtype=np.float32)
    scale = float(np.sqrt(np.mean(S.astype(np.float64) ** 2)) / np.sqrt(layers))
    a = Factor(one, np.ones(rank, np.float32), Vt, 1.0, start, 0)
    b = Factor(U, np.zeros(rank, np.float32), one, scale, start, rank)
    return SvdModule(name, 1.0, a, b)


def _start_of(module: SvdModule) -> LoraModule:
    return LoraModule(module.name, module.a.Vt, np.zeros_like(module.b.U), module.scaling)
