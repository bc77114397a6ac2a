"""The dashboard for terminals: one panel that is drawn in place."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from esalign.report.terminal.progress import RunProgress
from esalign.report.words import compact, duration, memory, number, one_line, prompt_text, score, workers
from esalign.run.reporter import About

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live
    from rich.text import Text

WIDEST = 120
DRAWINGS_PER_SECOND = 2
LABEL_WIDTH = 12
PROMPT_HEAD = 0.8  # share of a shortened problem that is its beginning, where the particulars mostly are
SAMPLE_HEIGHT = 6  # lines
WORD = 20  # columns that breaking two lines between words may cost
STATE = {  # what is shown of a row, where it is there
    "sigma": "sigma",
    "prompts": "problems",
    "mean_norm": "norm of the mean",
    "kl_to_rollouts": "KL to the rollouts",
    "beta": "beta",
    "reverse_kl": "reverse KL",
    "grad_norm": "gradient",
}
BLOCKS = "▁▂▃▄▅▆▇█"


class LiveDashboard:
    """Shows a run in a panel that stays in place, and stays in the scrollback when the run ends.

    It is a context manager: the terminal is given back on leaving. Only the 16 standard colours are used, which
    terminals adapt to light and dark.

    Args:
        console: a terminal.
        clock: tells seconds.
    """

    def __init__(self, console: "Console", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._progress: RunProgress | None = None
        self._sample: Mapping[str, Any] | None = None
        self._stage = ""
        self._begun = clock()
        self._closed = False
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(self, console=self._console, refresh_per_second=DRAWINGS_PER_SECOND)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, about: About, folder: Path, done: int) -> None:  # noqa: ARG002  (the rows tell)
        """Say that a run begins, or goes on."""
        progress = RunProgress(about, folder, clock=self._clock)
        self._sample = progress.last_sample()
        self._stage = ""
        self._progress = progress

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what goes on now, and how far it is."""
        self._stage = f"{text}: {done:,} of {total:,}" if total else text

    def generation(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a finished generation."""
        if self._progress is None:
            return
        self._progress.add(row)
        self._sample = self._progress.last_sample()
        self._stage = ""

    def warn(self, text: str) -> None:
        """Print a warning above the panel, where it stays."""
        from rich.text import Text

        self._console.print(Text.assemble(("warning: ", "bold red"), one_line(text, 1000)))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from rich.panel import Panel
        from rich.text import Text

        width = min(options.max_width, WIDEST)
        progress = self._progress
        if progress is None:
            if not self._closed:
                yield Text(f"esalign: {self._stage or 'starting'} ({duration(self._clock() - self._begun)})")
            return
        yield Panel(
            self._body(progress, width - 4, console.size.height - 3),
            title=Text(f" esalign: {one_line(str(progress.folder), width - 20)} ", style="bold"),
            title_align="left",
            subtitle=Text(f" {progress.about.description} "),
            subtitle_align="left",
            border_style="cyan",
            width=width,
        )

    def _body(self, progress: RunProgress, width: int, height: int) -> "RenderableType":
        """Everything inside the frame; the sample completion is left out where the terminal is too low for it."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=LABEL_WIDTH - 1, no_wrap=True, style="cyan")
        grid.add_column(width=width - LABEL_WIDTH)
        for label, value in self._lines(progress, width - LABEL_WIDTH):
            grid.add_row(label, value)
        worries = [Text.assemble(("! ", "bold red"), one_line(text, 3 * width)) for text in progress.concerns]
        if progress.rows and grid.row_count + SAMPLE_HEIGHT + len(worries) <= height:
            for label, value in self._sample_lines(width - LABEL_WIDTH):
                grid.add_row(label, Text(value))
        return Group(grid, *worries)

    def _lines(self, progress: RunProgress, width: int) -> "Iterator[tuple[str, RenderableType]]":
        from rich.text import Text

        yield progress.words.step, _bar(progress, width)
        if progress.rows:
            row = progress.rows[-1]
            fitness = row.get("fitness") or {}
            yield "validation", _validation(progress)
            yield "best so far", _best(progress)
            numbers = "   ".join(f"{key} {number(fitness[key])}" for key in ("mean", "max", "std") if key in fitness)
            blocks = sparkline(progress.fitness, width - len(numbers) - 3)
            yield "fitness", Text.assemble(numbers, "   ", (blocks, "cyan"))
            state = "   ".join(f"{name} {number(row[key], '.3g')}" for key, name in STATE.items() if key in row)
            yield progress.words.work, Text(state)
            tokens, speed = compact(row["tokens"].get("generated")), compact(progress.tokens_per_second)
            yield "tokens", Text(f"{tokens} generated   {speed} per second")
            if (machine := row.get("machine") or {}).get("workers"):
                happened = f"{machine.get('lost', 0):g} lost   {machine.get('redone', 0):g} units redone"
                yield "workers", Text(f"{workers(machine)}   {happened}   waited {duration(machine.get('waited', 0))}")
        yield "time", Text(self._time(progress))

    def _time(self, progress: RunProgress) -> str:
        since = 0.0 if self._closed else self._clock() - progress.received
        parts = [duration(progress.seconds_worked + since) + ("" if self._closed else " so far")]
        if self._stage and not self._closed:
            parts.append(self._stage)
        elif not self._closed:
            left = progress.seconds_left
            parts.append("time left: measuring" if left is None else f"about {duration(max(left - since, 0))} left")
        machine = progress.rows[-1]["machine"] if progress.rows else {}
        if machine:
            parts.append(f"peak memory {memory(machine.get('peak_rss_mib'))}")
        if machine.get("peak_gpu_mib"):
            parts.append(f"GPU {memory(machine['peak_gpu_mib'])}")
        return "   ".join(parts)

    def _sample_lines(self, width: int) -> Iterator[tuple[str, str]]:
        """The first problem of the generation, and what its best candidate wrote; at most `SAMPLE_HEIGHT` lines."""
        if self._sample is None:
            return
        reward = self._sample.get("reward")
        yield "", ""
        yield "problem", one_line(prompt_text(self._sample.get("prompt", "")), 2 * width - WORD, head=PROMPT_HEAD)
        yield "completion", one_line(str(self._sample.get("completion", "")), 2 * width - WORD)
        yield "reward", "none (abstained)" if reward is None else f"{reward:g}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as a row of blocks, the lowest shown as the lowest block; only the last ``width`` are drawn."""
    shown = values[-width:] if width > 0 else []
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in shown)


def _bar(progress: RunProgress, width: int) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    total, done = progress.about.limits.generations, progress.done
    text = f"{done} of {total}"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    bar = ProgressBar(
        total=total,
        completed=done,
        width=width - len(text) - 10,
        style="bright_black",
        complete_style="green",
        finished_style="green",
    )
    grid.add_row(text, bar, f"{done / total:4.0%}")
    return grid


def _validation(progress: RunProgress) -> "Text":
    from rich.text import Text

    last = progress.validated[1] if progress.validated else None
    return Text.assemble((score(last), "bold"), f"   start {score(progress.start)}")


def _best(progress: RunProgress) -> "Text":
    from rich.text import Text

    if progress.best is None or progress.start is None or progress.best[0] == 0:
        return Text("the start itself")
    generation, best = progress.best
    gained = (number(best.mean - progress.start.mean, "+.3f"), "bold green")
    return Text.assemble(
        (number(best.mean), "bold"), f" at {progress.words.step} {generation}, ", gained, " over the start"
    )
