"""The state of a run in one file, written atomically: an ``.npz`` of arrays and one JSON text, without pickles."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import CheckpointError
from esalign.files import write_atomically
from esalign.types import Array, State

KEPT = 2
_JSON = "json"
_ARRAY = "__array__"


def save_state(state: State, file: Path) -> None:
    """Write a state; a reader, or a crash, sees the old file or the new one, whole."""
    arrays: dict[str, Array] = {}
    text = json.dumps(_detach(state, arrays))
    buffer = io.BytesIO()
    arrays[_JSON] = np.frombuffer(text.encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(file, buffer.getvalue())


def load_state(file: Path) -> State:
    """Read a state.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        state: State = _attach(json.loads(arrays[_JSON].tobytes()), arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"cannot read the checkpoint '{file}' ({type(error).__name__}: {error})") from error
    return state


class Checkpoints:
    """The checkpoints of one run; the last `KEPT` stay.

    Args:
        folder: where they lie, as ``generation-000012.npz``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, generation: int) -> None:
        """Write the state after so many finished generations, then drop the oldest files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        save_state(state, self._folder / f"generation-{generation:06d}.npz")
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)

    @property
    def exist(self) -> bool:
        """Whether there is one."""
        return bool(self._files())

    def load_last(self) -> State | None:
        """Return the newest state, or None when there is none."""
        files = self._files()
        return load_state(files[-1]) if files else None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("generation-*.npz"))


def _detach(value: Any, arrays: dict[str, Array]) -> Any:
    """Return value with its arrays replaced by references, which are added to arrays."""
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _detach(inner, arrays) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_detach(inner, arrays) for inner in value]
    return value


def _attach(value: Any, arrays: Mapping[str, Array]) -> Any:
    """Undo `_detach`."""
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _attach(inner, arrays) for key, inner in value.items()}
    if isinstance(value, list):
        return [_attach(inner, arrays) for inner in value]
    return value
