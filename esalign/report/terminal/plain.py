"""One line per event, for logs and pipes."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from esalign.report.terminal.progress import RunProgress
from esalign.report.words import as_estimate, concerns, count, duration, number, one_line, score, set_name
from esalign.run.reporter import About

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_LINE = 1000
BETWEEN_LINES = 60.0  # seconds between two lines on one stage
FITNESS = {"mean": "", "max": "max", "std": "std"}  # what is shown of a row, where it is there
STATE = {"sigma": "sigma", "beta": "beta", "reverse_kl": "reverse KL"}


class PlainReporter:
    """Reports a run in plain lines.

    Args:
        console: where to print.
        clock: tells seconds.
    """

    def __init__(self, console: "Console", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._stage, self._said = "", clock()
        self._progress: RunProgress | None = None
        self._told = {"flat"}  # of that the run itself warns, with completions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def start(self, about: About, folder: Path, done: int) -> None:
        """Say that a run begins, or goes on after so many generations."""
        self._progress = RunProgress(about, folder)
        verb = f"goes on after {done} of" if done else "begins:"
        self._print(f"run {folder} {verb} {about.limits.generations} {self._progress.words.step}s, {about.description}")

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what goes on now, and once a minute how far it is."""
        now = self._clock()
        if text != self._stage:
            self._print(one_line(text, LONGEST_LINE))
        elif now - self._said >= BETWEEN_LINES:
            self._print(one_line(f"{text}: {done:,} of {total:,}", LONGEST_LINE))
        else:
            return
        self._stage, self._said = text, now

    def generation(self, row: Mapping[str, Any]) -> None:
        """Print the line of a generation, and what is worrying about it for the first time."""
        if self._progress is None:
            return
        self._progress.add(row)
        self._print(_start_line(row) if row["generation"] == 0 else self._line(row, self._progress))
        for kind, text in concerns(row, max_tokens=self._progress.about.max_tokens).items():
            if kind not in self._told:
                self._told.add(kind)
                self.warn(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print(f"warning: {one_line(text, LONGEST_LINE)}")

    def _line(self, row: Mapping[str, Any], progress: RunProgress) -> str:
        fitness, limit = row.get("fitness") or {}, progress.about.limits.generations
        parts = [
            f"{row['generation']:>{len(str(limit))}}/{limit}",
            "fitness "
            + " ".join(f"{name} {number(fitness[key])}".strip() for key, name in FITNESS.items() if key in fitness),
            *(f"{name} {number(row[key], '.3g')}" for key, name in STATE.items() if key in row),
            f"{count(progress.tokens_per_second)} tokens/s",
            f"{duration(progress.seconds_worked)}, about {duration(progress.seconds_left)} left",
        ]
        validation = as_estimate(row.get("validation"))
        if validation is not None:
            best = progress.best
            is_best = best is not None and best[0] == row["generation"]
            start = number(progress.start.mean if progress.start else None)
            parts.append(f"validation {score(validation)}, start {start}" + (", best so far" if is_best else ""))
        return " | ".join(parts)

    def _print(self, text: str) -> None:
        encoding = self._console.encoding
        line = text.encode(encoding, "replace").decode(encoding)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _start_line(row: Mapping[str, Any]) -> str:
    sets = [(name, as_estimate(value)) for name, value in row.items() if _is_interval(value)]
    return "start | " + " | ".join(f"{set_name(name)} {score(value)}" for name, value in sets)


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and {"mean", "low", "high", "count"} <= value.keys()
