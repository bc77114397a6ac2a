"""The files of a run that grow by lines, and the trackers that get the same numbers."""

import importlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from esalign.adapter_io import write_atomically
from esalign.errors import CheckpointError, ConfigError, MissingPackageError

TRACKERS = ("trackio", "wandb", "tensorboard")
logger = logging.getLogger(__name__)


class JsonLines:
    """A file of one JSON object a line, flushed to disk after each.

    Args:
        file: its path; it is made when the first line comes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line. Numbers that are not finite become null, as JSON knows none."""
        line = json.dumps(_finite(row), ensure_ascii=False) + "\n"
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


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read all whole lines of a file; a torn last line, as a kill leaves it, is passed over.

    Raises:
        CheckpointError: a line before the last is not JSON.
    """
    # Not splitlines: an answer may hold U+2028 and the like. A torn line may end within a character.
    lines = file.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n") if file.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise CheckpointError(f"'{file}' line {number} is not JSON: {error}") from error
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


class Tracker(Protocol):
    """A service that shows metrics: trackio, Weights & Biases, TensorBoard."""

    def log(self, metrics: Mapping[str, float], generation: int) -> None:
        """Send the numbers of one generation."""

    def finish(self) -> None:
        """Send what is left."""


class _Guarded:
    """A tracker whose failures are told once, and never end a run."""

    def __init__(self, kind: str, tracker: Tracker) -> None:
        self._kind, self._tracker, self._broken = kind, tracker, False

    def log(self, metrics: Mapping[str, float], generation: int) -> None:
        self._try(lambda: self._tracker.log(metrics, generation))

    def finish(self) -> None:
        self._try(self._tracker.finish)

    def _try(self, call: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001  (whatever a service and its network may raise)
            self._broken = True
            logger.warning("tracker %r failed and gets no more numbers: %s", self._kind, error)


class _ModuleTracker:
    """trackio and wandb share this interface."""

    def __init__(self, module: Any, name: str, config: Mapping[str, Any]) -> None:
        self._module = module
        module.init(project="esalign", name=name, config=dict(config))

    def log(self, metrics: Mapping[str, float], generation: int) -> None:
        self._module.log(dict(metrics), step=generation)

    def finish(self) -> None:
        self._module.finish()


class _TensorBoardTracker:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, metrics: Mapping[str, float], generation: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, generation)

    def finish(self) -> None:
        self._writer.close()


def make_tracker(kind: str, *, name: str, folder: Path, config: Mapping[str, Any]) -> Tracker | None:
    """Return the tracker of a name, or None for 'none'.

    Raises:
        MissingPackageError: its package is not installed.
        ConfigError: the name is unknown.
    """
    if kind == "none":
        return None
    if kind not in TRACKERS:
        raise ConfigError(f"run.tracker is {kind!r}, expected none, {', '.join(TRACKERS)}")
    try:
        if kind == "tensorboard":
            return _Guarded(kind, _TensorBoardTracker(folder / kind))
        return _Guarded(kind, _ModuleTracker(importlib.import_module(kind), name, config))
    except ImportError as error:
        if kind == "trackio":
            raise MissingPackageError(f"tracker {kind!r}", kind, "trackers") from error
        raise ConfigError(
            f"tracker {kind!r} needs the package {kind!r}, which is not installed: pip install {kind}"
        ) from error
    except Exception as error:  # no login, no network, or whatever else a service may want
        raise ConfigError(f"tracker {kind!r} cannot start: {' '.join(str(error).split())[:300]}") from error
