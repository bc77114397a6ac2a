"""A llama.cpp context: the key-value cache of some sequences, and the batch of tokens that is fed to it."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from esalign.errors import BackendError
from esalign.types import Array
from esalign_llama_cpp.model import GgufModel

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
GRANULARITY = 256  # llama.cpp rounds the tokens of a sequence up to it
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
FLASH_ATTENTION = {None: -1, False: 0, True: 1}
NO_SLOT = 1
WHOLE = -1


@dataclass(frozen=True)
class Settings:
    """How contexts are made.

    Args:
        threads: CPU threads.
        batch: the most tokens of one decoding step.
        outputs: the most tokens of one step whose logits are wanted.
        kv_type: type of the key-value cache, a key of `CACHE_TYPES`.
        flash_attention: None leaves it to llama.cpp.
        unified: one cache that all sequences share, in place of one for each.
    """

    threads: int
    batch: int
    outputs: int
    kv_type: str
    flash_attention: bool | None
    unified: bool


class Context:
    """The cache of ``sequences`` sequences of up to ``tokens`` tokens, and the arrays of one batch.

    Adapters belong to the context: all sequences of a batch are answered by the same candidate.

    Attributes:
        tokens: the longest sequence that fits.
        sequences: number of sequences.

    Raises:
        BackendError: llama.cpp cannot make the context, mostly for want of memory.
    """

    def __init__(
        self, model: GgufModel, settings: Settings, *, sequences: int, tokens: int, on_node: Any = None
    ) -> None:
        self._library = model.library
        self._api: Any = model.library.api
        self.model = model
        self.settings = settings
        self.sequences = sequences
        self.tokens = -(-tokens // GRANULARITY) * GRANULARITY
        self._on_node = on_node  # C holds no reference to it
        self._pointer: Any = self._make()
        self._memory = self._api.llama_get_memory(self._pointer)
        self._allocate()

    def _make(self) -> Any:
        parameters = self._api.llama_context_default_params()
        settings = self.settings
        parameters.n_ctx = self.tokens * self.sequences
        parameters.n_seq_max = self.sequences
        parameters.n_batch = parameters.n_ubatch = settings.batch
        parameters.n_outputs_max = settings.outputs
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.type_k = parameters.type_v = CACHE_TYPES[settings.kv_type]
        parameters.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
        parameters.kv_unified = settings.unified
        parameters.no_perf = True
        if self._on_node is not None:
            parameters.cb_eval = self._on_node
        self._library.log.clear()
        pointer = self._api.llama_init_from_model(self.model.pointer, parameters)
        if not pointer:
            raise BackendError(
                f"llama.cpp cannot make a context of {self.sequences} sequences of {self.tokens} tokens for "
                f"'{self.model.path}': {self._library.log.reason}"
            )
        return pointer

    def _allocate(self) -> None:
        """Make the batch's arrays, and let llama.cpp's struct point at them."""
        size = self.settings.batch
        self.token = np.zeros(size, np.int32)
        self.position = np.zeros(size, np.int32)
        self.sequence = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        self._addresses = (self.sequence.ctypes.data + 4 * np.arange(size)).astype(np.uint64)
        self._batch = self._api.llama_batch()
        self._batch.embd = None
        for field, array in (
            ("token", self.token),
            ("pos", self.position),
            ("n_seq_id", self._counts),
            ("seq_id", self._addresses),
            ("logits", self.wanted),
        ):
            kind = dict(self._batch._fields_)[field]
            setattr(self._batch, field, ctypes.cast(array.ctypes.data, kind))

    def decode(self, count: int) -> Array:
        """Feed the first ``count`` entries of the arrays.

        Returns:
            Logits of the wanted entries, in their order, shape (wanted, vocab): a view that the next call overwrites.

        Raises:
            BackendError: llama.cpp failed, or found no room.
        """
        self._batch.n_tokens = count
        self._library.log.clear()
        failure = self._api.llama_decode(self._pointer, self._batch)
        if failure == NO_SLOT:
            raise BackendError(f"the key-value cache of {self.sequences} x {self.tokens} tokens is full")
        if failure:
            raise BackendError(f"llama.cpp cannot decode (code {failure}): {self._library.log.reason}")
        rows = int(self.wanted[:count].sum())
        if not rows:
            return np.empty((0, self.model.vocab_size), np.float32)
        logits = self._api.llama_get_logits(self._pointer)
        return np.ctypeslib.as_array(logits, shape=(rows, self.model.vocab_size))

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int) -> None:
        """Let a sequence begin as a copy of another one."""
        self.forget(target)
        self._api.llama_memory_seq_cp(self._memory, source, target, WHOLE, WHOLE)

    def forget(self, sequence: int) -> None:
        """Forget one sequence."""
        self._api.llama_memory_seq_rm(self._memory, sequence, WHOLE, WHOLE)

    def use(self, adapter: Any) -> None:
        """Answer with an adapter from now on; None for the bare model."""
        api = self._api
        if adapter is None:
            failure = api.llama_set_adapters_lora(self._pointer, None, 0, None)
        else:
            adapters = (api.llama_adapter_lora_p_ctypes * 1)(adapter)
            failure = api.llama_set_adapters_lora(self._pointer, adapters, 1, (ctypes.c_float * 1)(1.0))
        if failure:
            raise BackendError(f"llama.cpp refuses the adapter (code {failure}): {self._library.log.reason}")

    def close(self) -> None:
        """Free the cache."""
        if self._pointer is not None:
            self._api.llama_free(self._pointer)
            self._pointer = None
