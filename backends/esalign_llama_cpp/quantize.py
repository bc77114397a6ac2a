"""Quantising GGUF files, by llama.cpp itself."""

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esalign.errors import BackendError
from esalign_llama_cpp.library import Library, load_library

if TYPE_CHECKING:
    from esalign_llama_cpp.config import ModelConfig

BLOCKS = {"q8_0": 32, "q4_0": 32, "q4_k_m": 256}
"""Kinds, and the number of weights that share a scale: the rows of all matrices must divide by it."""

INDIVISIBLE = "not divisible by"


def check_rows(config: "ModelConfig", kind: str) -> None:
    """Refuse a kind whose blocks do not fit the rows. llama.cpp would quietly take another kind.

    Raises:
        BackendError: the width of a layer does not divide by the block.
    """
    block = BLOCKS[kind]
    widths = {
        "hidden_size": config.width,
        "intermediate_size": config.inner_width,
        "heads x head_dim": config.heads[0] * config.head_width,
    }
    for name, width in widths.items():
        if width % block:
            other = "q8_0 or q4_0" if block == BLOCKS["q4_k_m"] and width % BLOCKS["q8_0"] == 0 else "f16"
            raise BackendError(
                f"quantization {kind!r} needs rows that divide by {block}, but the model's {name} is {width}: "
                f"use {other}"
            )


def quantize_model(source: str | Path, out: str | Path, kind: str, *, threads: int = 1) -> Path:
    """Quantise a GGUF file whose weights are not quantised yet. Returns the new file.

    Args:
        source: in f32, f16 or bf16.
        out: the file to write.
        kind: q8_0, q4_0 or q4_k_m. With q4_0, llama.cpp keeps the output layer in Q6_K; where the rows do not divide by
            256, it is Q8_0 here.
        threads: CPU threads.

    Raises:
        BackendError: the kind is unknown or does not fit the rows of a matrix, or llama.cpp failed.
    """
    if kind not in BLOCKS:
        raise BackendError(f"quantization is {kind!r}, expected one of {', '.join(BLOCKS)}")
    library = load_library()
    api = library.api
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.nthread = threads
    target = Path(out)
    failure, reason = _quantize(library, source, target, parameters)
    if kind == "q4_0" and INDIVISIBLE in reason:  # it keeps the output layer in Q6_K, whose blocks of 256 do not fit
        parameters.output_tensor_type = api.GGML_TYPE_Q8_0
        failure, reason = _quantize(library, source, target, parameters)
    if failure or INDIVISIBLE in reason:  # there llama.cpp takes another kind, and says so in its log alone
        target.unlink(missing_ok=True)
        raise BackendError(f"llama.cpp cannot quantise '{source}' to {kind}: {reason.split('; ')[0]}")
    return target


def _quantize(library: Library, source: str | Path, target: Path, parameters: Any) -> tuple[int, str]:
    """Let llama.cpp write the file. Returns its exit code, and what it complained of."""
    library.log.clear()
    code: int = library.api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    return code, library.log.reason
