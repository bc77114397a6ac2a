"""Finding an adapter's tensors in llama.cpp's memory, by its public callback, and writing into them.

llama.cpp has no function that changes a loaded adapter. But while it computes, it shows every node of its graph to a
callback, and the nodes that apply an adapter have its tensors as sources. What ctypes then reads of ggml's struct is
checked against ggml's own functions, as the struct's layout is private.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from esalign.types import Array
from esalign_llama_cpp.context import Context, Settings
from esalign_llama_cpp.library import Library
from esalign_llama_cpp.model import GgufModel

OBJECT_BYTES = 32  # ggml_tensor_overhead() counts sizeof(ggml_object) too
F32 = 0


class LayoutError(Exception):
    """This version of ggml lays its tensors out otherwise than is known here, or hides the adapter's."""


class GgmlTensor(ctypes.Structure):
    """The struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class Ggml:
    """ggml's own functions on tensors."""

    def __init__(self, library: Library) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.overhead = library.symbol("ggml_tensor_overhead", size)
        self.name = library.symbol("ggml_get_name", pointer, pointer)
        self.data = library.symbol("ggml_get_data", pointer, pointer)
        self.nbytes = library.symbol("ggml_nbytes", size, pointer)
        self.is_host = library.symbol("ggml_backend_buffer_is_host", ctypes.c_bool, pointer)
        self.read = library.symbol("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self.write = library.symbol("ggml_backend_tensor_set", None, pointer, pointer, size, size)


class AdapterTensor:
    """One matrix of a loaded adapter, float32.

    Attributes:
        values: write here, then call `flush`. Memory of llama.cpp itself where the tensor lies in main memory.
    """

    def __init__(self, ggml: Ggml, address: int, expected: Array) -> None:
        """Check the tensor at an address.

        Args:
            ggml: ggml's functions.
            address: of its struct.
            expected: what the adapter's file had for it.

        Raises:
            LayoutError: it is another tensor, or another layout.
        """
        self._ggml = ggml
        self._address = address
        tensor = GgmlTensor.from_address(address)
        label = tensor.name.decode("utf-8", "replace")
        checks = {
            "type": (tensor.type, F32),
            "shape": (tuple(tensor.ne), (*expected.shape[::-1], 1, 1)),
            "strides": (tuple(tensor.nb[:2]), (4, 4 * expected.shape[1])),
            "size": (ggml.nbytes(address), expected.nbytes),
            "address of the name": (ggml.name(address), address + GgmlTensor.name.offset),
            "address of the data": (ggml.data(address), tensor.data),
        }
        for what, (found, wanted) in checks.items():
            if found != wanted:
                raise LayoutError(f"the {what} of {label!r} is {found}, expected {wanted}")
        present = np.empty_like(expected)
        ggml.read(address, present.ctypes.data, 0, present.nbytes)
        if present.tobytes() != expected.tobytes():
            raise LayoutError(f"the memory of {label!r} does not hold what was loaded into it")
        self._direct = bool(tensor.buffer and ggml.is_host(tensor.buffer))
        if self._direct:
            memory = (ctypes.c_float * expected.size).from_address(tensor.data)
            self.values: Array = np.ctypeslib.as_array(memory).reshape(expected.shape)
        else:
            self.values = present

    def flush(self) -> None:
        """Hand the values over to a tensor that is not in main memory."""
        if not self._direct:
            self._ggml.write(self._address, self.values.ctypes.data, 0, self.values.nbytes)


def find_tensors(model: GgufModel, adapter: Any, expected: Mapping[str, Array]) -> dict[str, AdapterTensor]:
    """Return the tensors of a loaded adapter by name.

    Args:
        model: the model that it was loaded for.
        adapter: llama.cpp's handle.
        expected: what the adapter's file has for each tensor that is looked for, e.g. ``blk.0.attn_q.weight.lora_a``.

    Raises:
        LayoutError: one is not found, or is not what was expected.
    """
    ggml = Ggml(model.library)
    surplus = ggml.overhead() - ctypes.sizeof(GgmlTensor)
    if surplus != OBJECT_BYTES:
        raise LayoutError(f"ggml's tensors are {surplus - OBJECT_BYTES:+d} bytes larger than expected")
    addresses = _watch(model, adapter)
    missing = sorted(set(expected) - set(addresses))
    if missing:
        raise LayoutError(f"the graph shows no tensor {missing[0]!r}")
    return {name: AdapterTensor(ggml, addresses[name], values) for name, values in expected.items()}


def _watch(model: GgufModel, adapter: Any) -> dict[str, int]:
    """Decode one token in a context of its own, and note the address of every adapter tensor in the graph."""
    found: dict[str, int] = {}

    def on_node(node: int, ask: bool, _data: Any) -> bool:
        if ask:
            for source in GgmlTensor.from_address(node).src[:2]:
                if source:
                    name = GgmlTensor.from_address(source).name
                    if name.endswith((b".lora_a", b".lora_b")):
                        found[name.decode()] = source
        return False

    callback = model.library.api.ggml_backend_sched_eval_callback(on_node)
    settings = Settings(threads=1, batch=8, outputs=1, kv_type="f32", flash_attention=False, unified=True)
    context = Context(model, settings, sequences=1, tokens=1, on_node=callback)
    try:
        context.use(adapter)
        context.wanted[0] = 1
        context.decode(1)
        context.use(None)
    finally:
        context.close()
    return found
