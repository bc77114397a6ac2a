"""One self-contained HTML page per run, from nothing but the files of its directory."""

from pathlib import Path

from esalign.files import write_atomically
from esalign.report.page.render import render
from esalign.report.page.source import read_run

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's directory, finished or not, and return its path.

    What is broken of its files is left out, and named on the page.

    Raises:
        CheckpointError: the folder holds no run.
    """
    path = Path(folder) / "report.html"
    write_atomically(path, render(read_run(Path(folder))).encode("utf-8", "replace"))
    return path
