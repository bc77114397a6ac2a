"""Workers that are actors of Ray."""

import contextlib
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from esalign import errors
from esalign.config.cluster import ClusterSection
from esalign.engines.cluster.admission import Admission, Candidate
from esalign.engines.cluster.engine import Broken, Done, Engine, Hello, Kind, Refused
from esalign.engines.cluster.lifeline import Lifeline
from esalign.engines.cluster.units import Unit
from esalign.engines.cluster.workers import WorkerLost
from esalign.errors import BackendError, MissingPackageError
from esalign.protocols import Space

LEAST_STORE = 200_000_000  # bytes of the object store of a cluster that is started here
KNOCK = 10.0  # seconds until an address counts as dead
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
MOST_SAID = 1000  # characters of what Ray says of a failure, whose cause comes last
_AUTH = "RAY_AUTH_MODE"  # to an explicit address Ray brings no token by itself
FAREWELL = 5.0  # seconds that engines have to free what they hold


class RayWorkers:
    """Actors, each with one engine. They end with this process, however it ends: none is detached.

    Args:
        kinds: what the engine of each worker is to be, the last for all that follow.
        space: the search space, which goes to each actor once.
        address: the cluster to join; ``local`` starts one; None joins where RAY_ADDRESS says so, else starts one.

    Raises:
        BackendError: there is no cluster at the address.
        MissingPackageError: Ray is not installed.
    """

    def __init__(self, kinds: Sequence[Kind], space: Space | None, *, address: str | None) -> None:
        self._own = connect(address, len(pickle.dumps(space)))
        import ray

        self._ray = ray
        usual = float(ray.cluster_resources().get("GPU", 0.0) > 0)
        self._kinds = [
            replace(kind, gpus=0.0 if kind.device == "cpu" else usual) if kind.gpus is None else kind for kind in kinds
        ]
        self._space = ray.put(space)
        self._lifeline = None if (address or "").startswith("ray://") else Lifeline(ray.util.get_node_ip_address())
        self._admission = Admission()
        self.hellos: dict[int, Hello] = {}
        self._actors: dict[int, Any] = {}
        self._starts: dict[Any, int] = {}  # future -> its worker
        self._verdicts: dict[Any, Exception | None] = {}  # of starts, until they are told

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its completion, as the worker says that others are compared with."""
        return self._admission.reference.hello.context if self._admission.reference else None

    def kind(self, worker: int) -> Kind:
        """Return what a worker's engine is to be."""
        return self._kinds[min(worker, len(self._kinds) - 1)]

    def name(self, worker: int) -> str:
        """Return what people call a worker."""
        return f"worker {worker} ({self.kind(worker).known_as})"

    def clock(self) -> float:
        """Return the time, in seconds."""
        return time.monotonic()

    def start(self, worker: int) -> Any:
        """Begin to make an actor; where resources are missing, it comes as soon as a machine with them joins."""
        kind = self.kind(worker)
        options = {"num_gpus": kind.gpus, "num_cpus": kind.cpus, "max_restarts": 0, "max_task_retries": 0}
        made: Any = self._ray.remote(Engine)
        actor = self._actors[worker] = made.options(**options).remote()
        future = actor.begin.remote(kind, self._space, self._lifeline and self._lifeline.address)
        self._starts[future] = worker
        return future

    def submit(self, worker: int, unit: Unit) -> Any:
        """Hand a unit to an actor; its request is the method and its arguments."""
        method, *arguments = unit.request
        try:
            return getattr(self._actors[worker], method).remote(*arguments)
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(one_line(error)) from error

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Wait until at least one future is ready, or so many seconds. Returns those that are.

        A start is ready when it is known whether the worker may answer.
        """
        pending = [future for future in futures if future not in self._admission.waiting]
        ready: list[Any] = []
        if pending:
            ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout)
            if ready and len(pending) > 1:
                ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        else:
            time.sleep(min(timeout, 0.1))
        for future in ready:
            if future in self._starts:
                self._arrive(future)
        more = any(future in self._starts and future not in ready for future in pending)
        self._verdicts |= self._admission.judge(more=more, now=self.clock())
        return [future for future in futures if future in (self._verdicts if future in self._starts else ready)]

    def result(self, future: Any) -> Any:
        """Return what a ready future holds; see `esalign.engines.cluster.workers.Workers`."""
        if future not in self._starts:
            return self._value(future)
        worker, verdict = self._starts.pop(future), self._verdicts.pop(future)
        if verdict is not None:
            raise verdict
        return self.hellos[worker]

    def _arrive(self, future: Any) -> None:
        """Take in what a worker says of itself, or why it failed."""
        worker = self._starts[future]
        try:
            hello = self.hellos[worker] = self._value(future)
        except (WorkerLost, errors.EsalignError) as error:
            self._verdicts[future] = error
        else:
            one = Candidate(self.name(worker), hello, self.kind(worker), self.clock())
            self._admission.waiting[future] = one

    def _value(self, future: Any) -> Any:
        try:
            answer = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(one_line(error)) from error
        if isinstance(answer, Refused):
            kind = getattr(errors, answer.kind, BackendError)
            raise (BackendError if kind is MissingPackageError else kind)(answer.text)
        if isinstance(answer, Broken):
            raise WorkerLost(f"its engine failed: {answer.text}")
        return answer.value if isinstance(answer, Done) else answer

    def stop(self, worker: int) -> None:
        """End an actor, whatever it does."""
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor, no_restart=True)
        for future in [future for future, of in self._starts.items() if of == worker]:
            self._admission.waiting.pop(future, None)
            self._verdicts.pop(future, None)
            del self._starts[future]

    def share(self, value: Any) -> Any:
        """Put a value where each machine fetches it once. Returns what stands for it in a request."""
        return self._ray.put(value)

    def room(self) -> int:
        """Return how many workers of the first kind fit the machines that live."""
        kind, count = self._kinds[0], 0
        for node in self._ray.nodes():
            there = node["Resources"] if node["Alive"] else {}
            limits = [there.get(name, 0.0) / need for name, need in (("CPU", kind.cpus), ("GPU", kind.gpus)) if need]
            count += int(min(limits, default=0.0) + 1e-9)
        return count

    def situation(self) -> str:
        """Say what workers need and what there is."""
        needs = sorted({f"{kind.cpus:g} CPU cores and {kind.gpus:g} GPUs" for kind in self._kinds})
        there, free = self._ray.cluster_resources(), self._ray.available_resources()
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        return (
            f"each needs {' or '.join(needs)}; the cluster has {nodes} machines with {there.get('CPU', 0):g} CPU cores "
            f"({free.get('CPU', 0):g} free) and {there.get('GPU', 0):g} GPUs ({free.get('GPU', 0):g} free)"
        )

    def close(self) -> None:
        """Let engines free what they hold, end all actors, and the cluster if it was started here."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            farewells = [actor.close.remote() for actor in self._actors.values()]
            if farewells:
                self._ray.wait(farewells, num_returns=len(farewells), timeout=FAREWELL)
        for worker in list(self._actors):
            self.stop(worker)
        if self._lifeline is not None:
            self._lifeline.close(FAREWELL)
        if self._own:
            self._ray.shutdown()


def connect(address: str | None, size: int) -> bool:
    """Join a cluster, or start one in this machine.

    Args:
        address: see `RayWorkers`.
        size: bytes that go to each machine.

    Returns:
        Whether the connection is ours to end.

    Raises:
        BackendError: there is no cluster at the address.
        MissingPackageError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # says nothing to anybody
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed")  # printed; we say it ourselves
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingPackageError("a cluster", "ray", "ray") from error
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with _orderly_sigterm():
            if address == "local":
                _start(ray, size)
            else:
                _knock(address)
                ray.init(address=address, **QUIET)
    except Exception as error:  # Ray that does not start in time raises no class of its own
        asks = type(error) is ConnectionError and _AUTH not in os.environ  # somebody listens, and does not let us in
        token = f"; where it asks for a token, set {_AUTH}=token and let this machine have it in ~/.ray/auth_token"
        raise BackendError(
            f"no Ray cluster at {address!r} (cluster.address): {one_line(error)}; start one with `ray start --head`, "
            f"or leave the address out to start one in this machine{token if asks else ''}"
        ) from error
    return True


@contextlib.contextmanager
def _orderly_sigterm() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, close what is open: Ray makes of it a trace of addresses and an abort."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other one may
            signal.signal(signal.SIGTERM, _exit if before in (signal.SIG_DFL, None) else before)


def _exit(number: int, _frame: Any) -> None:
    sys.exit(128 + number)  # as shells say it


def _start(ray: Any, size: int) -> None:
    """Start Ray in this machine: on a busy one it may take longer than Ray waits, but less the second time."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's server dies with this process alone: its agents, which outlive both, need not look for it for a minute.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    for tries_left in (1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                object_store_memory=LEAST_STORE + 2 * size,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **QUIET,
            )
        except Exception:
            ray.shutdown()
            if not tries_left:
                raise
        else:
            return


@contextlib.contextmanager
def joined(section: ClusterSection | None, *spaces: Space | None) -> Iterator[None]:
    """Stay connected with a cluster, whoever comes and goes in it; without a section, do nothing.

    Args:
        section: the cluster.
        *spaces: search spaces, the largest of which goes to each machine.

    Raises:
        BackendError: there is no cluster at the address.
        MissingPackageError: Ray is not installed.
    """
    own = section is not None and connect(section.address, max(len(pickle.dumps(space)) for space in spaces))
    try:
        yield
    finally:
        if own:
            import ray

            ray.shutdown()


def _knock(address: str) -> None:
    """See whether somebody listens at ``host:port``. Ray itself would try for minutes, and say so to nobody.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def one_line(error: BaseException) -> str:
    """Return an error's class and text, without the ids that Ray puts each on a line of its own."""
    lines = [line for line in str(error).splitlines() if not re.match(r"\s*\w+: \S*$", line)]
    text = " ".join(" ".join(lines).split()).partition(" Some common causes include")[0]  # not those of this one
    return f"{type(error).__name__}: {text[:MOST_SAID]}"
