"""A GGUF model in memory: its metadata and its vocabulary."""

import ctypes
from functools import cached_property
from pathlib import Path
from typing import Any

from esalign.errors import BackendError
from esalign_llama_cpp.library import Library
from esalign_llama_cpp.names import ARCHITECTURES

MAGIC = b"GGUF"
ALL_F32 = "0"  # general.file_type of an unquantised model
SENTENCEPIECE = 1  # LLAMA_VOCAB_TYPE_SPM
ALL_LAYERS = -1


class GgufModel:
    """A model that llama.cpp holds.

    Args:
        library: llama.cpp.
        path: the GGUF file.
        gpu_layers: layers to hold on a GPU; -1 for all, 0 for none.
        gpu: index of the only GPU to use; None for all.

    Raises:
        BackendError: the file is missing, broken or of an architecture that is not supported.
    """

    def __init__(self, library: Library, path: Path, *, gpu_layers: int = 0, gpu: int | None = None) -> None:
        self.library = library
        self.path = path
        _check_magic(path)
        api = library.api
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        if gpu is not None:
            parameters.split_mode, parameters.main_gpu = api.LLAMA_SPLIT_MODE_NONE, gpu
        library.log.clear()
        pointer = api.llama_model_load_from_file(str(path).encode(), parameters)
        if not pointer:
            raise BackendError(_explain(path, library.log.reason))
        self._pointer: Any = pointer
        self.architecture = self.metadata("general.architecture")
        try:
            self._check()
        except BackendError:
            self.close()
            raise
        self.vocab = api.llama_model_get_vocab(pointer)
        self.vocab_size: int = api.llama_vocab_n_tokens(self.vocab)

    @property
    def pointer(self) -> Any:
        """llama.cpp's handle.

        Raises:
            BackendError: the model was closed.
        """
        if self._pointer is None:
            raise BackendError("the engine was closed: make a new one")
        return self._pointer

    def close(self) -> None:
        """Free the memory. Every context and adapter of the model must be freed before."""
        if self._pointer is not None:
            self.library.api.llama_model_free(self._pointer)
            self._pointer = None

    def metadata(self, key: str, default: str | None = None) -> str:
        """Return a value of the file's header, as text.

        Raises:
            BackendError: there is none, and no default.
        """
        read = self.library.api.llama_model_meta_val_str
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = read(self.pointer, key.encode(), buffer, size)
            if length < size:
                break
            size = length + 1
        if length >= 0:
            return buffer.value.decode("utf-8", "replace")
        if default is None:
            raise BackendError(f"'{self.path}' has no {key!r} in its header: is it a complete language model?")
        return default

    def number(self, key: str, default: int | None = None) -> int:
        """Return a number of the architecture's part of the header, e.g. ``"block_count"``."""
        text = self.metadata(f"{self.architecture}.{key}", None if default is None else str(default))
        try:
            return int(text)
        except ValueError:
            raise BackendError(f"'{self.path}' has {key} {text!r}, expected one number for all layers") from None

    @cached_property
    def heads(self) -> tuple[int, int]:
        """Attention heads, and those of keys and values."""
        heads = self.number("attention.head_count")
        return heads, self.number("attention.head_count_kv", heads)

    @cached_property
    def context(self) -> int:
        """Tokens of the longest sequence that the model was trained for."""
        return int(self.library.api.llama_model_n_ctx_train(self.pointer))

    @cached_property
    def kv_width(self) -> int:
        """Numbers that one token leaves in the key-value cache."""
        width = self.number("embedding_length") // self.heads[0]
        per_head = self.number("attention.key_length", width) + self.number("attention.value_length", width)
        return self.number("block_count") * self.heads[1] * per_head

    @property
    def is_float32(self) -> bool:
        """Whether no weight is quantised."""
        return self.metadata("general.file_type", "") == ALL_F32

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of chats."""
        template: bytes | None = self.library.api.llama_model_chat_template(self.pointer, None)
        return template.decode() if template else None

    def _check(self) -> None:
        """Refuse architectures whose names and layouts are not known here."""
        if self.architecture not in ARCHITECTURES:
            raise BackendError(
                f"'{self.path}' is of architecture {self.architecture!r}, expected one of {', '.join(ARCHITECTURES)}"
            )
        self.number("block_count")


class Vocabulary:
    """The vocabulary of a GGUF file: text to tokens and back."""

    def __init__(self, model: GgufModel) -> None:
        self._api = model.library.api
        self._vocab = model.vocab
        self.size = model.vocab_size
        adds_blank = model.metadata("tokenizer.ggml.add_space_prefix", "true") == "true"
        self.strips_blank = adds_blank and self._api.llama_vocab_type(self._vocab) == SENTENCEPIECE

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; special adds the tokens that the model wants around every text."""
        raw = text.encode()
        room = len(raw) + 16
        while True:
            ids = (self._api.llama_token * room)()
            count = self._api.llama_tokenize(self._vocab, raw, len(raw), ids, room, special, True)
            if count >= 0:
                return list(ids[:count])
            room = -count

    @cached_property
    def pieces(self) -> list[bytes]:
        """The text of every token, in UTF-8 that may be broken; empty for control tokens."""
        return [self._fill(token, special=False) for token in range(self.size)]

    @cached_property
    def shown_pieces(self) -> list[bytes]:
        """The same with the texts of control tokens."""
        return [self._fill(token, special=True) for token in range(self.size)]

    def _fill(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length: int = self._api.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def name(self, which: str) -> str:
        """Return the text of the special token ``"bos"`` or ``"eos"``, empty when there is none."""
        token = getattr(self._api, f"llama_vocab_{which}")(self._vocab)
        return self._api.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end a completion."""
        is_end = self._api.llama_vocab_is_eog
        return frozenset(token for token in range(self.size) if is_end(self._vocab, token))


def _explain(path: Path, reason: str) -> str:
    """Return what to say of a model that llama.cpp cannot load."""
    if "unknown model architecture" in reason:
        return f"llama.cpp cannot load '{path}': {reason}, expected one of {', '.join(ARCHITECTURES)}"
    return f"llama.cpp cannot load '{path}': {reason}; is the download complete?"


def _check_magic(path: Path) -> None:
    """Refuse what is no GGUF file before llama.cpp reads it.

    Raises:
        BackendError: no file, or not in GGUF.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise BackendError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if start != MAGIC:
        raise BackendError(f"'{path}' is not a GGUF file (it starts with {start!r}, expected {MAGIC!r})")
