"""The other side of the reward pool: a template process, from which scoring processes are forked.

The template imports the libraries once, which takes seconds; a scoring process that hangs or dies is replaced by a fork
of it in milliseconds. The user's own code is imported after the fork, as it may start threads, which forks do not
survive. No module here imports torch.
"""

import contextlib
import importlib
import os
import pickle
import signal
import socket
from collections.abc import Sequence
from multiprocessing.connection import Connection

from esalign.errors import RewardError
from esalign.rewards.judge import Item, judge, one_line


def run_template(descriptor: int, preload: Sequence[str]) -> None:
    """Fork a scoring process for each connection that arrives, until the run closes its end or dies.

    Args:
        descriptor: of the socket over which the connections arrive.
        preload: modules to import before.
    """
    for module in preload:
        with contextlib.suppress(ImportError):  # who needs the module says so when the reward is loaded
            importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries dead children
    control = socket.socket(fileno=descriptor)
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not request:
            break
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(Connection(descriptors[0]))
            finally:
                os._exit(0)
        os.close(descriptors[0])
    os.killpg(0, signal.SIGKILL)  # hanging children too; the template leads a process group of its own


def serve(connection: Connection) -> None:
    """Score blocks of completions until the other side hangs up. Each outcome is sent as soon as it is known."""
    connection.send(os.getpid())
    try:
        rewards = pickle.loads(connection.recv_bytes())  # noqa: S301  (written by our own parent)
    except Exception as error:  # noqa: BLE001  (unpickling imports the user's code)
        connection.send(error if isinstance(error, RewardError) else RewardError(one_line(error)))
        return
    connection.send(None)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            items: list[Item]
            items, skip = connection.recv()
            pairs = [(item, reward) for item in items for reward in rewards]
            for item, reward in pairs[skip:]:
                try:
                    connection.send(judge(reward, item))
                except RewardError as error:
                    connection.send(error)
                    return
