"""What a scheduler drives: workers that are made, examined, handed units and ended."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from esalign.engines.cluster.units import Unit
from esalign.errors import BackendError


class WorkerLost(Exception):  # noqa: N818  (an event)
    """A worker died, cannot be reached, or its engine broke: a new one may do what it had."""


class WrongAnswer(Exception):  # noqa: N818
    """A worker answered what cannot be an answer."""


class Unfit(BackendError):  # noqa: N818  (no error of anybody's)
    """A worker did not pass its examination, and would not another time."""


class Workers(Protocol):
    """What makes workers and hands units to them. A worker is known by its number."""

    def name(self, worker: int) -> str:
        """Return what people call a worker."""

    def clock(self) -> float:
        """Return the time, in seconds."""

    def start(self, worker: int) -> Hashable:
        """Begin to make a worker. Its future is ready when the worker passed its examination, or failed."""

    def submit(self, worker: int, unit: Unit) -> Hashable:
        """Hand a unit to a worker. Returns the answer's future.

        Raises:
            WorkerLost: the worker is no more.
        """

    def wait(self, futures: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Wait until at least one future is ready, or so many seconds. Returns those that are."""

    def result(self, future: Any) -> Any:
        """Return what a ready future holds.

        Raises:
            WorkerLost: the worker is no more.
            Unfit: the worker did not pass its examination.
            EsalignError: the engine refuses, as any engine would.
        """

    def stop(self, worker: int) -> None:
        """End a worker, whatever it does. Harmless where there is none."""

    def situation(self) -> str:
        """Say in a few words what workers need and what there is."""


@dataclass
class Worker:
    """What is known of a worker.

    Args:
        state: resting is dead until it is made anew, gone is dead for good.
        future: of its start, or of its unit.
        unit: what it does.
        blocks: of prompts, which it was sent in this call.
        since: when it began that, or when its rest ends.
        starts: failures to start, one after another.
        failures: failures of any kind since its last answer.
        slowness: times the usual time that it takes for a unit; None before its first answer.
        tokens: that it generated, with the seconds that it took.
        seconds: see tokens.
        why: what it failed of.
        left: it is gone because fewer are wanted.
    """

    state: Literal["starting", "idle", "busy", "resting", "gone"] = "resting"
    future: Any = None
    unit: Unit | None = None
    blocks: set[int] = field(default_factory=set)
    since: float = 0.0
    starts: int = 0
    failures: int = 0
    slowness: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    why: Exception | None = None
    left: bool = False


@dataclass
class Tally:
    """What happened so far.

    Args:
        units: units of work.
        redone: units that went back to the queue.
        doubled: units that a second worker was given, too.
        late: answers that came second.
        lost: workers that died.
        wrong: answers that could be none.
        hung: workers that did not answer in time.
        waited: seconds that workers had nothing to do while others worked, summed over workers.
    """

    units: int = 0
    redone: int = 0
    doubled: int = 0
    late: int = 0
    lost: int = 0
    wrong: int = 0
    hung: int = 0
    waited: float = 0.0
