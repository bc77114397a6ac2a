"""What the reporters know of a run: the rows so far, and what follows from them."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esalign.files import read_json_lines
from esalign.report.words import WORDS, as_estimate, concerns, sum_errors
from esalign.run.folder import METRICS, SAMPLES
from esalign.run.reporter import About
from esalign.run.statistics import Estimate

SHOWN = 200  # generations that a sparkline may show
WINDOW = 10  # generations that the speed is measured over
TAIL_BYTES = 1 << 16  # enough of samples.jsonl for the completions of one generation


class RunProgress:
    """The rows of a run so far.

    Args:
        about: what the run does.
        folder: its directory; rows of an earlier part of the same run are read from its ``metrics.jsonl``.
        clock: tells seconds.

    Attributes:
        words: what this kind of run calls its things.
        rows: one per generation, the start first.
        best: the generation of the best validation score, and the score.
        validated: the same of the last validation.
        concerns: what in the last generation should worry the user; scoring errors are those of the whole run.
        received: when the last row came, on the clock.
    """

    def __init__(self, about: About, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.about, self.folder = about, folder
        self.words = WORDS[about.kind]
        self.rows: list[Mapping[str, Any]] = []
        self.concerns: list[str] = []
        self._errors: dict[str, Any] = {}
        self.best: tuple[int, Estimate] | None = None
        self.validated: tuple[int, Estimate] | None = None
        self.received = clock()
        for row in read_json_lines(folder / METRICS):
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in the row of a finished generation, or of the start."""
        validation = as_estimate(row.get("validation"))
        if validation is not None:
            self.validated = (row["generation"], validation)
            if self.best is None or validation.mean >= self.best[1].mean:
                self.best = self.validated
        self.rows = [*self.rows, row]  # a new list, as another thread may be drawing the old one
        self._errors = sum_errors([self._errors, row])
        self.concerns = list(concerns({**row, **self._errors}, max_tokens=self.about.max_tokens).values())
        self.received = self._clock()

    @property
    def done(self) -> int:
        """Finished generations."""
        return int(self.rows[-1]["generation"]) if self.rows else 0

    @property
    def start(self) -> Estimate | None:
        """The start's validation score."""
        return as_estimate(self.rows[0].get("validation")) if self.rows else None

    @property
    def fitness(self) -> list[float]:
        """The mean fitness of the last generations."""
        means = [(row.get("fitness") or {}).get("mean") for row in self.rows[-SHOWN:]]
        return [float(mean) for mean in means if mean is not None and math.isfinite(mean)]

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens per second of search, over the last generations."""
        seconds = self._recent("machine", "search_seconds")
        return self._recent("tokens", "generated") / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """What the generations left, their validations and the final judgement should take, as measured so far."""
        counted = min(WINDOW, len(self.rows) - 1)
        if counted < 1:
            return None
        search, held_out = (self._recent("machine", f"{kind}_seconds") / counted for kind in ("search", "held_out"))
        limits, last = self.about.limits, self.rows[-1]["machine"]
        left = float(limits.generations - self.done)
        if limits.max_minutes is not None and search > 0:
            left = min(left, math.ceil(max(60 * limits.max_minutes - last["search_seconds"], 0.0) / search))
        return left * (search + held_out) + float(self.rows[0]["machine"]["held_out_seconds"])

    @property
    def seconds_worked(self) -> float:
        """Seconds of search and judgement until the last row, earlier parts of a resumed run included."""
        machine = self.rows[-1]["machine"] if self.rows else {}
        return float(machine.get("search_seconds") or 0.0) + float(machine.get("held_out_seconds") or 0.0)

    def last_sample(self) -> Mapping[str, Any] | None:
        """Return a completion of the last generation, from the end of ``samples.jsonl``."""
        import json

        try:
            with (self.folder / SAMPLES).open("rb") as file:
                file.seek(0, 2)
                file.seek(max(file.tell() - TAIL_BYTES, 0))
                lines = file.read().split(b"\n")
        except OSError:
            return None
        for line in lines:
            try:
                sample = json.loads(line)
            except ValueError:  # the first line may be cut
                continue
            if isinstance(sample, dict) and sample.get("generation") == self.done:
                return sample
        return None

    def _recent(self, section: str, key: str) -> float:
        """Return how much a running total grew over the last generations."""
        window = self.rows[-WINDOW - 1 :]
        if len(window) < 2:
            return 0.0
        first, last = (row.get(section, {}).get(key) or 0.0 for row in (window[0], window[-1]))
        return float(last - first)
