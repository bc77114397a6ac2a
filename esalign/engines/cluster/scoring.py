"""Completions are scored on the cluster's machines: by actors of Ray, each with the processes that a run's own has."""

import importlib.metadata
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from esalign.config.cluster import ClusterSection
from esalign.engines.cluster.lifeline import Address, Lifeline, hold_on
from esalign.engines.cluster.ray_workers import FAREWELL, connect, one_line
from esalign.errors import EsalignWarning, RewardError
from esalign.rewards.code import pack_with_code
from esalign.rewards.judge import Item, Outcome
from esalign.rewards.load import Reward
from esalign.rewards.process import Template, Worker
from esalign.rewards.scorers import Scorers, slow_modules

TRIES = 5  # actors that a block of completions may cost
SILENCE = 60.0  # seconds without an outcome, or a word, after which an actor is asked for one, or made anew


def start_on_cluster(rewards: Sequence[Reward], *, section: ClusterSection, workers: int, timeout: float) -> Scorers:
    """Start processes on the cluster's machines that score, as many on one as on the other.

    They take no core away from engines, as those beside the run take none. Whoever joined the cluster leaves it.

    Args:
        rewards: what each of them scores with; the user's code is sent.
        section: the cluster.
        workers: number of processes, at least 1.
        timeout: seconds for one reward of one completion.

    Raises:
        BackendError: there is no cluster.
        MissingPackageError: Ray is not installed.
        RewardError: a reward that cannot be sent.
    """
    packed = pack_with_code(rewards)
    connect(section.address, 0)
    import ray

    distant = (section.address or "").startswith("ray://")
    lifeline = None if distant else Lifeline(ray.util.get_node_ip_address())
    positional = (packed, slow_modules(rewards), lifeline and lifeline.address)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")][:workers]
    machines = []
    for number, node in enumerate(nodes or [None]):
        processes = len(range(number, workers, max(1, len(nodes))))
        settings = {"count": len(rewards), "timeout": timeout, "processes": processes}
        machines.append(Machine(positional, settings, node=node, patience=section.wait))

    def end() -> None:
        for machine in machines:
            machine.close()
        if lifeline is not None:
            lifeline.close(FAREWELL)

    return Scorers([machine for machine in machines for _ in range(machine.processes)], end)


class Actor:
    """The scoring processes of one machine; Ray makes an actor of this class. They end with the run, or with it."""

    def __init__(
        self,
        packed: bytes,
        preload: Sequence[str],
        lifeline: Address | None,
        *,
        count: int,
        timeout: float,
        processes: int,
    ) -> None:
        if lifeline is not None:
            hold_on(lifeline)
        template = Template(preload)
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(processes):
            self._idle.put(Worker(template, packed, count=count, timeout=timeout))

    def hello(self) -> tuple[str, str]:
        """Return the machine and the version of esalign."""
        return socket.gethostname(), importlib.metadata.version("esalign")

    def score(self, items: Sequence[Item]) -> list[list[Outcome]] | str:
        """Return ``outcomes[i][r]``; a text is why a reward cannot score. To be called by a thread for each process."""
        worker = self._idle.get()
        try:
            return worker.score(items)
        except RewardError as error:
            return f"machine {socket.gethostname()}: {error}"
        finally:
            self._idle.put(worker)


class Machine:
    """An actor as the run sees it: made anew, there or elsewhere, whenever it dies or sleeps.

    Its `score` may be called by as many threads as it has processes.

    Args:
        positional: arguments of `Actor`.
        settings: further ones, by name.
        node: where it should be, while that lives; None where any machine that comes will do.
        patience: seconds until it must have found a place.
    """

    def __init__(
        self, positional: tuple[Any, ...], settings: dict[str, Any], *, node: str | None, patience: float
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._patience = ray, patience
        self.processes: int = settings["processes"]
        self._lock, self._closed = threading.Lock(), False
        # By default, Ray places an actor on a machine that has a core, and counts none as taken.
        made: Any = ray.remote(Actor)
        where = NodeAffinitySchedulingStrategy(node, soft=True) if node else "SPREAD"
        placed = made.options(scheduling_strategy=where, max_concurrency=self.processes + 1)
        self._make: Callable[[], Any] = lambda: placed.remote(*positional, **settings)
        self._actor = self._make()

    def start(self) -> None:
        """Wait until the actor has found a place.

        Raises:
            RewardError: it has not in time, or it is of another version.
        """
        for _ in range(TRIES):
            actor = self._actor
            try:
                host, version = self._ray.get(actor.hello.remote(), timeout=self._patience)
            except self._ray.exceptions.GetTimeoutError:
                raise RewardError(
                    f"no machine of the cluster began to score within {self._patience:.0f} s (cluster.wait)"
                ) from None
            except self._ray.exceptions.RayError as error:
                cause = one_line(error)
                self._replace(actor, cause)
                continue
            if version != (ours := importlib.metadata.version("esalign")):
                raise RewardError(
                    f"machine {host} has esalign {version}, this one {ours}: install the same version on all machines"
                )
            return
        raise RewardError(f"no scoring process can be started on the cluster, the last: {cause}")

    def score(self, items: Sequence[Item]) -> list[list[Outcome]]:
        """Return ``outcomes[i][r]``, what reward r made of item i; from another actor, if one dies or sleeps.

        Raises:
            RewardError: a reward breaks its contract, or the items cost too many actors.
        """
        for _ in range(TRIES):
            actor = self._actor
            try:
                answer = self._ask(actor, items)
            except self._ray.exceptions.RayError as error:
                cause = one_line(error)
                self._replace(actor, cause)
                self.start()
                continue
            if isinstance(answer, str):
                raise RewardError(answer)
            return answer
        raise RewardError(
            f"{len(items)} completions cost {TRIES} scoring actors, the last: {cause}; is one of them more than a "
            "machine's memory holds?"
        )

    def close(self) -> None:
        """End the actor, whatever it does."""
        with self._lock:
            self._closed = True
            self._ray.kill(self._actor, no_restart=True)

    def _ask(self, actor: Any, items: Sequence[Item]) -> Any:
        """Return an actor's answer, as long as it gives signs of life."""
        future = actor.score.remote(items)
        while not self._ray.wait([future], timeout=SILENCE)[0]:
            self._ray.get(actor.hello.remote(), timeout=SILENCE)
        return self._ray.get(future)

    def _replace(self, actor: Any, cause: str) -> None:
        """Make a new actor in place of one, unless another thread did."""
        with self._lock:
            if self._closed or self._actor is not actor:
                return
            self._ray.kill(actor, no_restart=True)
            self._actor = self._make()
        text = f"scoring processes of a machine were lost, and are made anew: {cause}"
        warnings.warn(text, EsalignWarning, stacklevel=3)
