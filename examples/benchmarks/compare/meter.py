"""What a row spends on training, and the snapshots that it leaves on the way."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esalign.files import write_atomically
from esalign.run.progress import peak_memory

MARKS = (0.04, 0.08, 0.14, 0.2, 0.3, 0.45, 0.7, 1.0)
"""Shares of the budget at which a snapshot is due: the first step that ends after one leaves it."""

Save = Callable[[Path], None]
"""Writes the present model into a folder: what it changes of the start, as ``adapter`` or as ``model``."""


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Meter:
    """Counts the processor time, wall-clock time and tokens of training; loading, saving and judging are left out.

    Args:
        budget: processor seconds to spend.
        folder: where snapshots go.
    """

    def __init__(self, budget: float, folder: Path) -> None:
        self.budget, self.folder = budget, folder
        self.tokens = dict.fromkeys(("prompt", "generated", "scored", "trained"), 0)
        self.parts: dict[str, float] = {}
        self.steps = 0
        self._points: list[dict[str, Any]] = []
        self._due = [share * budget for share in MARKS]
        self._processor = self._wall = 0.0
        self._since: tuple[float, float] | None = None
        self._loaded_mib = 0.0

    def begin(self) -> None:
        """Start counting."""
        self._loaded_mib = resident_mib()
        self._since = (processor_seconds(), time.perf_counter())

    @property
    def seconds(self) -> float:
        """Processor seconds so far."""
        running = 0.0 if self._since is None else processor_seconds() - self._since[0]
        return self._processor + running

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return not self._due

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the processor time of what is done inside as a part of its own."""
        began = processor_seconds()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + processor_seconds() - began

    def step(self, save: Save, **tokens: int) -> None:
        """Note a finished step and its tokens, and leave a snapshot when one is due."""
        self.steps += 1
        for kind, count in tokens.items():
            self.tokens[kind] += count
        if self._due and self.seconds >= self._due[0]:
            self._pause()
            self._due = [mark for mark in self._due if mark > self._processor]
            self._snapshot(save)
            self._since = (processor_seconds(), time.perf_counter())

    def _pause(self) -> None:
        if self._since is not None:
            self._processor += processor_seconds() - self._since[0]
            self._wall += time.perf_counter() - self._since[1]
        self._since = None

    def _snapshot(self, save: Save) -> None:
        folder = self.folder / f"point{len(self._points) + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        save(folder)
        self._points.append(
            {
                "folder": folder.name,
                "steps": self.steps,
                "processor_seconds": round(self._processor, 2),
                "wall_seconds": round(self._wall, 2),
                "tokens": dict(self.tokens),
            }
        )

    def finish(self) -> None:
        """Write down what was spent; its being there says that training is finished."""
        content = {
            "budget": self.budget,
            "steps": self.steps,
            "parts": {name: round(seconds, 2) for name, seconds in self.parts.items()},
            "loaded_mib": round(self._loaded_mib, 1),
            **peak_memory(),
            "points": self._points,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "training.json", json.dumps(content).encode())


def resident_mib() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
