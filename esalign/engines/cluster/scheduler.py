"""Who does which unit of work, and what happens when a worker dies, sleeps, lies or joins late.

It knows neither Ray nor engines: it drives whatever `Workers` are, so that the same code runs over actors on many
machines and over a simulation of them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, takewhile
from typing import Any

from esalign.engines.cluster.pace import Pace
from esalign.engines.cluster.units import Unit, describe
from esalign.engines.cluster.workers import Tally, Unfit, Worker, WorkerLost, Workers, WrongAnswer
from esalign.errors import BackendError, EsalignError

TICK = 1.0  # seconds between two looks at clocks
KILLS = 3  # engines that a unit may cost
STARTS = 3  # failures to start one after another, after which a worker is given up
LONGEST_REST = 60.0  # seconds until a failed worker is made anew
SLOW = 3.0  # times the usual time, from which on a worker is given the smallest units
OVERDUE = 2.0  # times the time that was expected, after which nobody knows when a unit ends
HOLDERS = 2  # workers that a unit may have at a time
SAY_AFTER, SAY_EVERY = 25.0, 60.0  # seconds of waiting for workers


@dataclass
class _Call:
    """The units that are not done: those that nobody has in the queue, all of them by their keys in open."""

    queue: deque[Unit]
    open: dict[tuple[int, int], Unit]
    accept: Callable[[Unit, Any], int]
    name: Callable[[Unit], str]
    failed: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # by units, the workers that they cost


class Scheduler:
    """Keeps workers alive and busy.

    Args:
        workers: how they are made and asked.
        count: how many there should be.
        least: with fewer than this it waits.
        patience: seconds that it waits, before it gives up.
        limit: seconds that a unit may take, before its worker counts as hung.
        warn: told what the user should know.
    """

    def __init__(
        self,
        workers: Workers,
        count: int,
        *,
        least: int = 1,
        patience: float = 600.0,
        limit: float = 1800.0,
        warn: Callable[[str], None],
    ) -> None:
        self._workers, self._least, self._patience, self._limit, self._warn = workers, least, patience, limit, warn
        self.members: dict[int, Worker] = {}
        self.tally = Tally()
        self._pace = Pace()
        self._short_since: float | None = None
        self._said = 0.0
        self._proven = False  # some worker passed its examination
        self.resize(count)

    def resize(self, count: int) -> None:
        """Let workers join, or leave, those that do not work first. To be called between calls of `run`."""
        kept = [number for number, worker in self.members.items() if not worker.left]
        kept.sort(key=lambda number: self.members[number].state not in ("idle", "busy"))
        for number in kept[count:]:
            self._workers.stop(number)
            self.members[number].state, self.members[number].left = "gone", True
        for _ in range(count - len(kept)):
            self.members[len(self.members)] = Worker(since=self._workers.clock())

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return sum(not worker.left for worker in self.members.values())

    @property
    def ready(self) -> list[int]:
        """The workers that passed their examination and live, as far as is known."""
        return [number for number, worker in self.members.items() if worker.state in ("idle", "busy")]

    def assemble(self) -> None:
        """Wait until there are enough workers.

        Raises:
            BackendError: there never were.
            EsalignError: what none of them could be made for.
        """
        while not self._enough():
            self._revive()
            self._listen(None)

    def run(
        self, units: Sequence[Unit], accept: Callable[[Unit, Any], int], name: Callable[[Unit], str] = describe
    ) -> None:
        """Have all units done. Of a unit's answers the first counts.

        Args:
            units: the work, the largest first.
            accept: takes a unit and its answer, once for each unit. Returns the number of tokens generated. Raises
                `WrongAnswer` for what cannot be an answer.
            name: what people call a unit.

        Raises:
            BackendError: workers are too few for too long, or a unit cost too many of them.
            EsalignError: an engine refuses a unit, as any other would.
        """
        call = _Call(deque(units), {unit.key: unit for unit in units}, accept, name)
        self.tally.units += len(units)
        for worker in self.members.values():
            worker.blocks.clear()
        while call.open:
            self._revive()
            if self._enough():
                self._assign(call)
            self._listen(call)
            self._end_hung(call)

    def measure(self) -> dict[str, float]:
        """Return how many workers there are, their tokens per second while they work, and the tally."""
        speed = sum(worker.tokens / worker.seconds for worker in self.members.values() if worker.seconds)
        return {"workers": len(self.ready), "worker_tokens_per_second": round(speed, 1), **asdict(self.tally)}

    def close(self) -> None:
        """End all workers."""
        for number, worker in self.members.items():
            self._workers.stop(number)
            worker.state = "gone"

    # --- workers come and go ---

    def _revive(self) -> None:
        now = self._workers.clock()
        for number, worker in self.members.items():
            if worker.state == "resting" and worker.since <= now:
                worker.state, worker.since = "starting", now
                worker.future = self._workers.start(number)

    def _enough(self) -> bool:
        """Say whether there are enough workers to go on; while there are not, see to it that nobody waits for ever."""
        now, ready = self._workers.clock(), len(self.ready)
        if ready >= self._least:
            self._short_since = None
            return True
        if sum(worker.state != "gone" for worker in self.members.values()) < self._least:
            causes = [worker.why for worker in self.members.values() if worker.why is not None]
            if not self._proven and causes and isinstance(causes[-1], EsalignError):
                raise causes[-1]
            raise BackendError(
                f"{ready} workers are left and {self._least} are needed, as the others could not be made; the last: "
                f"{causes[-1] if causes else 'cluster.workers is lower than cluster.min_workers'}"
            )
        if self._short_since is None:
            self._short_since, self._said = now, now + SAY_AFTER - SAY_EVERY
        waited = now - self._short_since
        text = f"{ready} of at least {self._least} workers are ready; {self._workers.situation()}"
        if waited > self._patience:
            raise BackendError(f"{text}; gave up after {waited:.0f} s: see cluster.wait and cluster.min_workers")
        if now - self._said >= SAY_EVERY:
            self._said = now
            self._warn(f"waiting for workers: {text}; gives up in {self._patience - waited:.0f} s")
        return False

    def _fail(self, number: int, why: Exception, call: _Call | None) -> None:
        """Bury a worker, and put its unit back."""
        worker, now = self.members[number], self._workers.clock()
        starting, unit = worker.state == "starting", worker.unit
        self._workers.stop(number)
        worker.failures += 1
        worker.starts += starting
        worker.why, worker.future, worker.unit, worker.slowness = why, None, None, None
        rest = min(LONGEST_REST, 0.5 * 2**worker.failures) if starting or worker.failures > 1 else 0.0
        worker.state, worker.since = "resting", now + rest
        unfit = isinstance(why, Unfit)
        # what the user asked for cannot be made by anybody
        hopeless = isinstance(why, EsalignError) and not unfit and not self._proven
        if unfit or hopeless or worker.starts >= STARTS:
            worker.state = "gone"
            if not hopeless:
                self._warn(f"{self._workers.name(number)} is given up after {worker.starts} tries: {why}")
        elif not starting:
            self._warn(f"{self._workers.name(number)} is made anew: {why}")
        if call is not None and unit is not None and unit.key in call.open:
            self._put_back(unit, number, why, call)

    def _put_back(self, unit: Unit, number: int, why: Exception, call: _Call) -> None:
        failed = call.failed.setdefault(unit.key, [])
        failed.append(number)
        if len(failed) >= KILLS:
            raise BackendError(
                f"{call.name(unit)} cost {KILLS} engines one after another, so this ends here: is it more than the "
                f"engine's memory holds? The last one: {why}"
            )
        if not self._holders(unit):
            self.tally.redone += 1
            call.queue.appendleft(unit)

    # --- units go out ---

    def _assign(self, call: _Call) -> None:
        """Give each idle worker something to do, the fastest first."""
        idle = [number for number, worker in self.members.items() if worker.state == "idle"]
        late: list[tuple[float, Unit]] | None = None
        for number in sorted(idle, key=lambda number: self.members[number].slowness or 1.0):
            worker = self.members[number]
            if (unit := self._choose(number, call)) is not None:
                self._hand(number, unit, call)
                continue
            late = self._late(call) if late is None else late
            usual = self._pace.usual(late[0][1].size) if late else None
            if usual is None or late[0][0] <= usual * (worker.slowness or 1.0):  # this worker would not be sooner
                continue
            if number in call.failed.get(late[0][1].key, ()):
                continue
            self.tally.doubled += 1
            self._hand(number, late.pop(0)[1], call)

    def _hand(self, number: int, unit: Unit, call: _Call) -> None:
        worker = self.members[number]
        worker.state, worker.unit, worker.since = "busy", unit, self._workers.clock()
        worker.blocks.update(unit.blocks)
        try:
            worker.future = self._workers.submit(number, unit)
        except WorkerLost as error:
            self.tally.lost += 1
            self._fail(number, error, call)

    def _choose(self, number: int, call: _Call) -> Unit | None:
        """Take one of the largest units, if possible one whose prompts a worker has; for a slow one the smallest."""
        worker, queue, barred = self.members[number], call.queue, self._barred(number, call)
        places = [at for at, unit in enumerate(queue) if unit.key not in barred] if barred else range(len(queue))
        if not places:
            return None
        if (worker.slowness or 1.0) >= SLOW:
            at = places[-1]
        else:
            least = queue[places[0]].size / 2
            largest = takewhile(lambda at: queue[at].size >= least, islice(places, len(self.members)))
            at = min(largest, key=lambda at: _new(worker, queue[at]))
        unit = queue[at]
        del queue[at]
        return unit

    def _barred(self, number: int, call: _Call) -> set[tuple[int, int]]:
        """Return the units that a worker failed at, and another one may not: perhaps the worker is at fault."""
        ready = set(self.ready) if call.failed else set()
        return {key for key, failed in call.failed.items() if number in failed and ready.difference(failed)}

    def _late(self, call: _Call) -> list[tuple[float, Unit]]:
        """Return the units that one worker is at, with the seconds that are probably left, the longest first."""
        now, found = self._workers.clock(), dict[tuple[int, int], list[tuple[float, Unit]]]()
        for holder in self.members.values():
            unit = holder.unit
            usual = self._pace.usual(unit.size) if unit is not None else None
            if unit is None or usual is None or unit.key not in call.open:
                continue
            spent, expected = now - holder.since, usual * (holder.slowness or 1.0)
            left = expected - spent if spent < OVERDUE * expected else spent
            found.setdefault(unit.key, []).append((left, unit))
        alone = [holders[0] for holders in found.values() if len(holders) < HOLDERS]
        return sorted(alone, key=lambda late: -late[0])

    def _holders(self, unit: Unit) -> list[Worker]:
        return [worker for worker in self.members.values() if worker.unit is not None and worker.unit.key == unit.key]

    # --- answers come in ---

    def _listen(self, call: _Call | None) -> None:
        """Wait for whatever comes first, and deal with it."""
        before = self._workers.clock()
        idle = sum(worker.state == "idle" for worker in self.members.values())
        owners = {w.future: number for number, w in self.members.items() if w.state in ("starting", "busy")}
        ready = self._workers.wait(list(owners), TICK)
        self.tally.waited += idle * (self._workers.clock() - before)
        for future in ready:
            self._hear(owners[future], call)

    def _hear(self, number: int, call: _Call | None) -> None:
        worker, unit = self.members[number], self.members[number].unit
        starting = worker.state == "starting"
        wanted = call is not None and unit is not None and unit.key in call.open
        try:
            answer = self._workers.result(worker.future)
            if starting:
                worker.starts, self._proven = 0, True
            elif call is not None and unit is not None:
                self._take(worker, unit, answer, call)
        except WorkerLost as error:
            self.tally.lost += 1
            self._fail(number, error, call)
        except WrongAnswer as error:
            self.tally.wrong += 1
            self._fail(number, WrongAnswer(f"it gave what is no answer: {error}"), call)
        except EsalignError as error:
            if starting:
                self._fail(number, error, call)
                return
            worker.state, worker.future, worker.unit = "idle", None, None
            if wanted:
                raise
        else:
            worker.state, worker.future, worker.unit = "idle", None, None

    def _take(self, worker: Worker, unit: Unit, answer: Any, call: _Call) -> None:
        """Hand an answer on if it is the first, and measure the worker."""
        seconds = self._workers.clock() - worker.since
        if unit.key in call.open:
            worker.tokens += call.accept(unit, answer)
            worker.seconds += seconds
            del call.open[unit.key]
            if unit in call.queue:  # its first worker died, and a second one was at it
                call.queue.remove(unit)
        else:
            self.tally.late += 1
        worker.failures = 0
        if unit.size:
            self._pace.note(unit.size, seconds)
            worker.slowness = self._pace.slowness(worker.slowness, unit.size, seconds)

    def _end_hung(self, call: _Call) -> None:
        """End workers that are at a unit, or at their start, for too long."""
        now, within = self._workers.clock(), f"within {self._limit:.0f} s (cluster.limit)"
        for number, worker in self.members.items():
            if now - worker.since <= self._limit:
                continue
            if worker.state == "starting":  # perhaps for want of a machine, so it is no failure
                self._workers.stop(number)
                worker.state, worker.since, worker.future = "resting", now, None
                self._warn(f"{self._workers.name(number)} did not start {within}, so it is made anew")
            elif worker.state == "busy" and worker.unit is not None:
                self.tally.hung += 1
                what = call.name(worker.unit) if worker.unit.key in call.open else "work that another has done since"
                self._fail(number, WorkerLost(f"{what}: no answer {within}"), call)


def _new(worker: Worker, unit: Unit) -> float:
    """Return the share of a unit's blocks that its worker was not sent yet."""
    return len(set(unit.blocks) - worker.blocks) / max(1, len(unit.blocks))
