"""A worker ends with the process that it works for, on whatever machine, however that process ends."""

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

PATIENCE = 10.0  # seconds to reach the other end, and of silence until a machine counts as gone
Address = tuple[str, int]


class Lifeline:
    """The end that workers hold on to. Nothing is sent: the system closes connections when a process is no more."""

    def __init__(self, host: str) -> None:
        self._server = socket.create_server((host, 0))
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, name="lifeline", daemon=True).start()

    @property
    def address(self) -> Address:
        """Where to connect."""
        host, port = self._server.getsockname()[:2]
        return host, port

    def close(self, patience: float = 0.0) -> None:
        """Let go: whoever holds on ends.

        Args:
            patience: seconds to wait for those that are ending anyway: Ray calls it a failure if they end by this.
        """
        deadline = time.monotonic() + patience
        for one in self._held:
            one.settimeout(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                one.recv(1)  # the system closes the other end when its process is no more
        for one in (self._server, *self._held):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._held.append(self._server.accept()[0])


def hold_on(address: Address) -> None:
    """End this process and its children as soon as the other end is gone; never, where it cannot be reached."""
    with contextlib.suppress(OSError):
        line = socket.create_connection(address, timeout=PATIENCE)
        line.settimeout(None)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that lost power closes nothing
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", int(PATIENCE) - 5)):
            if hasattr(socket, name):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=_wait, args=(line,), name="lifeline", daemon=True).start()


def _wait(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.recv(1)
    for child in _children(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _children(process: int) -> list[int]:
    """Return the processes that a process started, and those that they did; none where there is no /proc."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *_children(child)]
    return found
