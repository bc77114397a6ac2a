"""Scoring processes as the run sees them: started, given a time limit, killed and replaced."""

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from esalign.errors import RewardError
from esalign.rewards.judge import Item, Outcome
from esalign.rewards.load import Reward

START_LIMIT = 120.0
"""Seconds for a scoring process to import its libraries and load its rewards."""

_MAIN = (
    "import json, sys; fd, sys.path[:], preload = json.loads(sys.argv[1]); "
    "from esalign.rewards.worker import run_template; run_template(fd, preload)"
)


class Template:
    """The process from which scoring processes are forked.

    It is a fresh interpreter rather than a fork of the run, which has torch's threads, and it does not import the run's
    main script again, as ``multiprocessing`` would.

    Args:
        preload: modules that it imports, once for all.

    Raises:
        RewardError: the system cannot fork.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        if not hasattr(os, "fork"):
            raise RewardError("scoring processes need a system that can fork: set scoring.workers to 0")
        self._control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        arguments = json.dumps([theirs.fileno(), sys.path, list(preload)])
        self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and code)
            [sys.executable, "-W", "ignore", "-c", _MAIN, arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what rewards print would tear the dashboard
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C in the terminal is for the run, which finishes its generation
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        )
        theirs.close()

    def fork(self) -> Connection:
        """Return the connection to a new scoring process.

        Raises:
            RewardError: the template is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with self._lock:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise RewardError("the processes that score have died: is the machine out of memory?") from None
        finally:
            theirs.close()
        return Connection(ours.detach())

    def close(self) -> None:
        """End the template and all that was forked from it."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def pack(rewards: Sequence[Reward]) -> bytes:
    """Return rewards as bytes, for a scoring process to load them again.

    Raises:
        RewardError: a function that only this process has.
    """
    for reward in rewards:
        way_out = "put it into a file and pass 'file.py:function', or set workers to 0"
        if getattr(reward.spec, "__module__", None) == "__main__":
            raise RewardError(
                f"reward {reward.name!r} is of the main script, where no other process finds it: {way_out}"
            )
        try:
            pickle.dumps(reward)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RewardError(f"reward {reward.name!r} cannot go to another process ({error}): {way_out}") from None
    return pickle.dumps(tuple(rewards))


class Worker:
    """One scoring process, replaced whenever it hangs or dies.

    Args:
        template: what to fork it from.
        rewards: what it scores with, as `pack` returned them.
        count: number of rewards.
        timeout: seconds for one reward of one completion.
    """

    def __init__(self, template: Template, rewards: bytes, *, count: int, timeout: float) -> None:
        self._template, self._timeout = template, timeout
        self._rewards, self._count = rewards, count
        self._connection: Connection | None = None
        self._pid = 0

    def start(self) -> None:
        """Start the process, unless it runs, and have it load the rewards.

        Raises:
            RewardError: it did not start, or could not load a reward.
        """
        if self._connection is not None:
            return
        self._connection = self._template.fork()
        try:
            self._pid = self._receive(START_LIMIT)
            self._connection.send_bytes(self._rewards)
            self._receive(START_LIMIT)
        except TimeoutError:
            self._kill()
            raise RewardError(f"a scoring process did not load its rewards within {START_LIMIT:.0f} s") from None
        except (EOFError, OSError):
            self._hang_up()
            raise RewardError(
                "a scoring process died as it loaded its rewards: is the machine out of memory?"
            ) from None

    def score(self, items: Sequence[Item]) -> list[list[Outcome]]:
        """Return ``outcomes[i][r]``, what reward r made of item i.

        A reward that exceeds the limit, or kills the process twice, is a failure of that item alone.

        Raises:
            RewardError: a reward breaks its contract, or no process can be started.
        """
        outcomes: list[Outcome] = []
        died_at = -1
        while len(outcomes) < len(items) * self._count:
            self.start()
            try:
                self._score_from(items, outcomes)
            except TimeoutError:
                self._kill()
                outcomes.append(Outcome(failure="timeout", message=f"no reward within {self._timeout:g} s"))
            except (EOFError, OSError):
                self._hang_up()
                if died_at == len(outcomes):
                    outcomes.append(
                        Outcome(failure="error", message="the scoring process died on this completion, twice")
                    )
                died_at = len(outcomes)
        return [outcomes[first : first + self._count] for first in range(0, len(outcomes), self._count)]

    def _score_from(self, items: Sequence[Item], outcomes: list[Outcome]) -> None:
        """Have the process score what has no outcome yet, and append the outcomes as they come."""
        if self._connection is None:
            raise EOFError
        done_items, done_rewards = divmod(len(outcomes), self._count)
        self._connection.send((items[done_items:], done_rewards))
        while len(outcomes) < len(items) * self._count:
            outcomes.append(self._receive(self._timeout))

    def _receive(self, limit: float) -> Any:
        """Return the process's next message, or raise the error that it is."""
        if self._connection is None:
            raise EOFError
        if not self._connection.poll(limit):
            raise TimeoutError
        message = self._connection.recv()
        if isinstance(message, RewardError):
            self._hang_up()
            raise message
        return message

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)  # it hangs, so it lives: the number is still its own
        self._hang_up()

    def _hang_up(self) -> None:
        """Leave a process that has ended or will, now that nobody listens."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
