"""Files that are whole or not there: atomic writes, and files of one JSON object a line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esalign.errors import CheckpointError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees either the old content or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    write_atomically(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


class JsonLines:
    """A file of one JSON object a line, flushed to disk after each.

    Args:
        file: its path; it is made when the first line comes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line. Numbers that are not finite become null, as JSON knows none."""
        line = json.dumps(finite(row), ensure_ascii=False) + "\n"
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def keep_until(self, generation: int) -> None:
        """Drop the lines of later generations, and a torn last line, as a killed run leaves them."""
        if not self._file.exists():
            return
        kept = [row for row in read_json_lines(self._file) if row.get("generation", 0) <= generation]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_atomically(self._file, text.encode())


def read_json_lines(file: Path, *, skipped: list[int] | None = None) -> list[Any]:
    """Read all whole lines of a file; a torn last line, as a kill leaves it, is passed over.

    Args:
        file: its path; one that is not there has no lines.
        skipped: where to put the numbers of other lines that are not JSON; None for an error.

    Raises:
        CheckpointError: a line before the last is not JSON.
    """
    # Not splitlines: an answer may hold U+2028 and the like. A torn line may end within a character.
    lines = file.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n") if file.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            if number < len(lines) and skipped is None:
                raise CheckpointError(f"'{file}' line {number} is not JSON: {error}") from error
            if number < len(lines) and skipped is not None:
                skipped.append(number)
    return rows


def finite(value: Any) -> Any:
    """Return a value with null for the numbers in it that are not finite, as JSON knows none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def expand_home(path: str) -> str:
    """Return a path with ``~`` as the user's home; a name that is no path, such as one on the hub, as it is.

    >>> expand_home("organisation/model")
    'organisation/model'
    """
    return os.path.expanduser(path)  # noqa: PTH111  (a Path would rewrite names that only look like one)
