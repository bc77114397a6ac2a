"""Turning llama.cpp from one candidate to the next.

A candidate's update is ``scaling * U_B diag(s_B) M diag(s_A) V_A^T``. One side stays as it is for the whole run, U_B or
V_A^T, and the other one carries everything else; the smaller matrix is the one that is written.
"""

import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from esalign.errors import BackendError, EsalignWarning
from esalign.protocols import Space
from esalign.types import Array
from esalign_llama_cpp.context import Context
from esalign_llama_cpp.library import TESTED
from esalign_llama_cpp.lora import SUFFIXES, write_lora_gguf
from esalign_llama_cpp.model import GgufModel
from esalign_llama_cpp.names import heads_to_permute, linear_to_gguf, permute
from esalign_llama_cpp.tensors import LayoutError, find_tensors

Method = Literal["auto", "in-place", "files"]
METHODS = ("auto", "in-place", "files")


@dataclass(frozen=True)
class Side:
    """One adapted layer, as llama.cpp gets it.

    Args:
        name: of the model's tensor.
        core: ``scaling * M``, shape (rank, rank).
        basis: the factor that candidates change, V_A^T of shape (rank, in), or U_B of shape (out, rank).
        fixed: the other one, which they do not.
        writes_a: whether the changing one is A.
    """

    name: str
    core: Array
    basis: Array
    fixed: Array
    writes_a: bool

    @property
    def tensor(self) -> str:
        """Name of the tensor that candidates change."""
        return self.name + SUFFIXES[0 if self.writes_a else 1]


class Writer:
    """Computes the changing factors of one candidate after another.

    The small matrices between the factors are made for all layers of a rank at once: one by one, they would take as
    long as the products.
    """

    def __init__(self, sides: list[Side]) -> None:
        self._sides = sides
        ranks = [len(side.core) for side in sides]
        self._groups = [[place for place, rank in enumerate(ranks) if rank == one] for one in sorted(set(ranks))]
        self._cores = [np.stack([sides[place].core for place in group]) for group in self._groups]

    def write(self, values: list[tuple[Array, Array]], outs: list[Array]) -> None:
        """Write a candidate's factors.

        Args:
            values: per layer its singular values of A and of B, each (rank,).
            outs: per layer where its changing factor goes, of the shape of the basis.
        """
        for group, cores in zip(self._groups, self._cores, strict=True):
            s_a, s_b = (np.array([values[place][factor] for place in group]) for factor in (0, 1))
            inner = s_b[:, :, None] * cores * s_a[:, None, :]  # (layers, rank, rank)
            for place, core in zip(group, inner, strict=True):
                side = self._sides[place]
                first, second = (core, side.basis) if side.writes_a else (side.basis, core)
                np.matmul(first, second, out=outs[place])


def make_sides(space: Space, model: GgufModel) -> list[Side]:
    """Lay out every adapted layer of a space for a model.

    Raises:
        AdapterError: a layer has no place in the model's architecture.
        BackendError: a layer's width is not that of its heads.
    """
    sides = []
    for module in space.modules:
        heads = heads_to_permute(module.name, model.architecture, model.heads)
        out = len(module.b.U)
        if heads is not None and out % (2 * heads):
            raise BackendError(
                f"{module.name} of the adapter has {out} outputs, which do not divide among the {heads} heads of "
                f"'{model.path}': use the model that the adapter was trained on"
            )
        up, down = permute(module.b.U, heads), module.a.Vt
        writes_a = down.size <= up.size
        basis, fixed = (down, up) if writes_a else (up, down)
        name = linear_to_gguf(module.name, model.architecture) + ".weight"
        core = np.float32(module.scaling) * module.core
        sides.append(Side(name, core, np.ascontiguousarray(basis), np.ascontiguousarray(fixed), writes_a))
    return sides


class InPlaceSwitch:
    """One adapter, loaded once, whose memory is rewritten for every candidate.

    One context uses it at a time: it must be closed before another one is selected for, and before `close`.

    Raises:
        LayoutError: a check of llama.cpp's memory failed.
    """

    def __init__(self, model: GgufModel, sides: list[Side]) -> None:
        self._model = model
        self._writer = Writer(sides)
        self._user: Context | None = None
        with AdapterFile(sides, model.architecture) as file:
            self._adapter = load_adapter(model, file.path)
        try:
            found = find_tensors(model, self._adapter, {side.tensor: side.basis for side in sides})
        except BaseException:
            free_adapter(model, self._adapter)
            raise
        self._tensors = [found[side.tensor] for side in sides]
        self._views = [tensor.values for tensor in self._tensors]

    def select(self, values: list[tuple[Array, Array]], context: Context) -> None:
        """Rewrite the adapter, and forget what was computed with the old one."""
        self._writer.write(values, self._views)
        for tensor in self._tensors:
            tensor.flush()
        if context is not self._user:
            context.use(self._adapter)
            self._user = context
        context.clear()

    def close(self) -> None:
        """Free the adapter, after the views of its memory."""
        self._tensors, self._views = [], []
        self._user = None
        if self._adapter is not None:
            free_adapter(self._model, self._adapter)
            self._adapter = None


class FileSwitch:
    """A file in memory, patched and loaded for every candidate: by public functions of llama.cpp alone."""

    def __init__(self, model: GgufModel, sides: list[Side]) -> None:
        self._model = model
        self._writer = Writer(sides)
        self._file = AdapterFile(sides, model.architecture)
        self._views = [self._file.tensors[side.tensor] for side in sides]
        try:
            self._adapter: Any = load_adapter(model, self._file.path)  # now rather than later, to see whether it fits
        except BackendError:
            self._file.close()
            raise

    def select(self, values: list[tuple[Array, Array]], context: Context) -> None:
        """Load the candidate's adapter, and free the last one, which no context has by then."""
        self._writer.write(values, self._views)
        adapter = load_adapter(self._model, self._file.path)
        context.use(adapter)
        free_adapter(self._model, self._adapter)
        self._adapter = adapter
        context.clear()

    def close(self) -> None:
        """Free the adapter and the file."""
        if self._adapter is not None:
            free_adapter(self._model, self._adapter)
            self._adapter = None
        self._views = []
        self._file.close()


def make_switch(space: Space, model: GgufModel, method: Method) -> InPlaceSwitch | FileSwitch:
    """Return the way to switch: in place unless a check fails or another one is asked for.

    Raises:
        AdapterError: a layer of the space has no place in the model's architecture.
        BackendError: the space is of another model, or the method asked for does not work.
    """
    sides = make_sides(space, model)
    if method == "files":
        return FileSwitch(model, sides)
    try:
        return InPlaceSwitch(model, sides)
    except LayoutError as error:
        if method == "in-place":
            raise BackendError(
                f"adapters cannot be rewritten in place: {error}; use method 'files', or the tested version of "
                f"llama-cpp-python, {TESTED[1]}"
            ) from error
        warnings.warn(
            f"llama.cpp: adapters cannot be rewritten in place ({error}), so each candidate's is loaded from memory, "
            f"which is slower; llama-cpp-python {TESTED[1]} is the tested version",
            EsalignWarning,
            stacklevel=2,
        )
        return FileSwitch(model, sides)


class AdapterFile:
    """A LoRA GGUF of the fixed and the changing factors: in memory where the system can, else a temporary file.

    Attributes:
        path: where llama.cpp finds it.
        tensors: the changing factors by name, as views of the file.
    """

    def __init__(self, sides: list[Side], architecture: str) -> None:
        from gguf import GGUFReader

        self._descriptor: int | None = None
        if sys.platform == "linux":
            self._descriptor = os.memfd_create("esalign-adapter")
            self.path = Path(f"/proc/self/fd/{self._descriptor}")
        else:
            handle, name = tempfile.mkstemp(suffix=".gguf", prefix="esalign-")
            os.close(handle)
            self.path = Path(name)
        factors = {side.name: (side.basis, side.fixed) if side.writes_a else (side.fixed, side.basis) for side in sides}
        write_lora_gguf(self.path, architecture, factors, alpha=0.0)
        changing = {side.tensor for side in sides}
        self.tensors: dict[str, Array] = {
            tensor.name: tensor.data for tensor in GGUFReader(self.path, "r+").tensors if tensor.name in changing
        }

    def close(self) -> None:
        """Remove the file."""
        self.tensors = {}
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        else:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_adapter(model: GgufModel, path: Path) -> Any:
    """Load a LoRA GGUF for a model. Returns llama.cpp's handle.

    Raises:
        BackendError: the adapter is of another model, or broken.
    """
    library = model.library
    library.log.clear()
    adapter = library.api.llama_adapter_lora_init(model.pointer, str(path).encode())
    if not adapter:
        raise BackendError(
            f"llama.cpp cannot load the adapter for '{model.path}': {library.log.reason}; "
            "use the model that the adapter was trained on"
        )
    return adapter


def free_adapter(model: GgufModel, adapter: Any) -> None:
    """Free an adapter. A context that still had it would read freed memory."""
    model.library.api.llama_adapter_lora_free(adapter)
