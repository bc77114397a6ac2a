"""Workers that exist on paper alone, and take the time that they are told: hours of a cluster pass in seconds."""

from collections.abc import Callable, Sequence
from typing import Any

from esalign.engines.cluster.units import Unit


class SimulatedWorkers:
    """Workers of a discrete-event simulation: a clock that jumps to the next event, and futures that know their time.

    Args:
        answer: of (worker, unit, time), the seconds until it answers and what: a value, or an exception to raise.
            Infinitely many seconds are an answer that never comes.
        begin: of (worker, time), the seconds until it is ready and None, or the exception that it fails of.
    """

    def __init__(
        self,
        answer: Callable[[int, Unit, float], tuple[float, Any]],
        begin: Callable[[int, float], tuple[float, Any]] = lambda _worker, _time: (0.0, None),
    ) -> None:
        self._answer, self._begin = answer, begin
        self._time, self._count = 0.0, 0
        self._futures: dict[int, tuple[float, Any]] = {}  # when it is ready, and what it holds
        self._of: dict[int, int] = {}  # worker -> its latest future

    def name(self, worker: int) -> str:
        """Return what people call a worker."""
        return f"worker {worker}"

    def clock(self) -> float:
        """Return the simulated time, in seconds."""
        return self._time

    def start(self, worker: int) -> int:
        """Begin to make a worker."""
        return self._later(worker, *self._begin(worker, self._time))

    def submit(self, worker: int, unit: Unit) -> int:
        """Hand a unit to a worker."""
        return self._later(worker, *self._answer(worker, unit, self._time))

    def wait(self, futures: Sequence[int], timeout: float) -> list[int]:
        """Let time pass until the first future is ready, or the timeout is over."""
        first = min((self._futures[future][0] for future in futures), default=float("inf"))
        self._time = max(self._time, min(first, self._time + timeout))
        return [future for future in futures if self._futures[future][0] <= self._time]

    def result(self, future: int) -> Any:
        """Return what a future holds, or raise it."""
        _, value = self._futures.pop(future)
        if isinstance(value, Exception):
            raise value
        return value

    def stop(self, worker: int) -> None:
        """Forget a worker's future."""
        self._futures.pop(self._of.pop(worker, -1), None)

    def situation(self) -> str:
        """Say that all this is a simulation."""
        return "workers need nothing, as they are simulated"

    def _later(self, worker: int, seconds: float, value: Any) -> int:
        self._count += 1
        self._of[worker] = self._count
        self._futures[self._count] = (self._time + seconds, value)
        return self._count
