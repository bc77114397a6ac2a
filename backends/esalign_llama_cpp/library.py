"""llama.cpp's shared library, as llama-cpp-python binds it, and what it writes to its log."""

import ctypes
import functools
import re
from collections import deque
from types import ModuleType
from typing import Any

from esalign.errors import MissingPackageError

TESTED = ("0.3.36", "0.3.36")
"""The oldest and the newest version of llama-cpp-python that the tests were run with."""

WARNING, ERROR, CONTINUED = 3, 4, 5  # of ggml.h; the binding's own table is older than its library
EMPTY_WORDS = ("failed to load model", "llama_model_loader: failed to load model")  # they follow on the reason
_SPEAKER = re.compile(r"^(\w+: )(error loading model: )?")


class Log:
    """The last warnings and errors that llama.cpp logged: of a failed call it returns no other reason."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=100)
        self._level = 0

    def add(self, level: int, text: str) -> None:
        """Take a piece of the log."""
        if level != CONTINUED:
            self._level = level
        if self._level not in (WARNING, ERROR):
            return
        if level == CONTINUED and self._lines:
            self._lines[-1] = (self._level, self._lines[-1][1] + text)
        else:
            self._lines.append((self._level, text))

    def clear(self) -> None:
        """Forget what was logged; to be called before what may fail."""
        self._lines.clear()

    @property
    def reason(self) -> str:
        """The errors since `clear`, or the warnings where there are none, in one line."""
        worst = max((level for level, _ in self._lines), default=ERROR)
        lines = [_SPEAKER.sub("", " ".join(text.split())) for level, text in self._lines if level == worst]
        telling = [line for line in lines if line and not line.startswith(EMPTY_WORDS)]
        return "; ".join(dict.fromkeys(telling)) or "llama.cpp gave no reason"


class Library:
    """The binding, ggml's own symbols, and the log.

    Attributes:
        api: the module ``llama_cpp.llama_cpp``.
        log: the last warnings and errors.
    """

    def __init__(self, api: ModuleType) -> None:
        self.api = api
        self.log = Log()
        self._callback = api.llama_log_callback(self._on_log)  # C holds no reference to it
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        api.llama_backend_init()

    def _on_log(self, level: int, text: bytes, _data: Any) -> None:
        self.log.add(level, text.decode("utf-8", "replace"))

    def symbol(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return a function of ggml.

        It is looked up through libllama's own handle, which finds the copy that libllama uses. Loading libggml-base by
        its path would map a second copy.
        """
        function = getattr(self.api._lib, name)  # noqa: SLF001  (the binding has no public handle)
        function.restype, function.argtypes = result, list(arguments)
        return function


@functools.cache  # the log's callback belongs to the process
def load_library() -> Library:
    """Load llama.cpp.

    Raises:
        MissingPackageError: llama-cpp-python or gguf is not installed.
    """
    try:
        import gguf  # noqa: F401  (only asked for here, so that it is not missed later)
    except ModuleNotFoundError:
        raise MissingPackageError("backend 'llama-cpp'", "gguf", "llama-cpp") from None
    try:
        from llama_cpp import llama_cpp
    except ModuleNotFoundError:
        raise MissingPackageError("backend 'llama-cpp'", "llama-cpp-python", "llama-cpp") from None
    return Library(llama_cpp)
