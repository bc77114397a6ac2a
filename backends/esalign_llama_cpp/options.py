"""Checking a user's options, and filling in those that were left out."""

import os
import sys

from esalign.errors import BackendError
from esalign_llama_cpp.context import MOST_SEQUENCES, Settings
from esalign_llama_cpp.model import ALL_LAYERS, GgufModel

DEFAULT_SEQUENCES = 32
LOGITS_ELEMENTS = 2**24  # of one step, which bounds them to 64 MiB


def check_sequence_count(sequences: int | None, *, batch: int) -> None:
    """Refuse more sequences than a step has tokens."""
    most = min(MOST_SEQUENCES, batch) - 1  # one more holds what prompts share; llama.cpp aborts beyond
    if (sequences or 1) > most:
        raise BackendError(
            f"sequences is {sequences or 1}, expected at most {most}: below the option 'batch', which is {batch}, and "
            f"llama.cpp's limit of {MOST_SEQUENCES}"
        )


def find_device(device: str, gpu_layers: int | None, *, gpus: bool) -> tuple[int, int | None]:
    """Return the number of layers on a GPU, and the only GPU to use, if any.

    Args:
        device: auto, cpu, cuda or cuda:<number>.
        gpu_layers: the user's choice.
        gpus: whether llama.cpp was built for GPUs.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdigit())):
        raise BackendError(f"device is {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:<number>'")
    if kind == "cuda" and not gpus:
        raise BackendError(
            f"device is {device!r}, but llama.cpp was built without GPUs: use 'cpu', or build it with "
            'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir llama-cpp-python'
        )
    if kind == "cpu" or not gpus:
        return 0, None
    return ALL_LAYERS if gpu_layers is None else gpu_layers, int(number) if colon else None


def default_threads() -> int:
    """Return half of the processors that this process may use: a core mostly counts as two of them.

    On busy cores a second thread made llama.cpp 4 to 20 times slower, so fewer is safer.
    """
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, available // 2)


def make_settings(
    model: GgufModel,
    *,
    dtype: str,
    threads: int,
    batch: int,
    kv_type: str | None,
    flash_attention: bool | None,
    kv_unified: bool,
) -> Settings:
    """Return how contexts are made. float32 means float32 throughout, as parity with other engines needs it."""
    exact = dtype == "float32" or (dtype == "auto" and model.is_float32)
    kind = kv_type or ("f32" if exact else "f16")
    flash = False if flash_attention is None and kind == "f32" else flash_attention
    if kind == "q8_0" and flash is False:
        raise BackendError("kv_type 'q8_0' needs flash_attention: leave it out, or switch it on")
    outputs = min(batch, max(MOST_SEQUENCES, LOGITS_ELEMENTS // model.vocab_size))
    return Settings(threads, batch, outputs, kind, flash, kv_unified)
