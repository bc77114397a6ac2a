"""The files of a run that grow by lines, and the trackers that get the same numbers."""

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from esalign.errors import ConfigError, MissingPackageError

logger = logging.getLogger(__name__)


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
    """Return the tracker of a name, as ``run.tracker`` has it, or None for 'none'.

    Raises:
        MissingPackageError: trackio is not installed.
        ConfigError: another one's package is not installed, or it cannot start.
    """
    if kind == "none":
        return None
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
