"""What a user sees of a run on the terminal, or in a log."""

from typing import TYPE_CHECKING

from esalign.report.terminal.judged import show_judged
from esalign.report.terminal.live import LiveDashboard
from esalign.report.terminal.plain import PlainReporter
from esalign.report.terminal.probed import show_probe
from esalign.report.terminal.tables import show_plan, show_result

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST, LOWEST = 60, 12  # columns and lines that the dashboard needs

__all__ = ["LiveDashboard", "PlainReporter", "make_reporter", "show_judged", "show_plan", "show_probe", "show_result"]


def make_reporter(console: "Console") -> LiveDashboard | PlainReporter:
    """Return the dashboard for a terminal, and plain lines for everything else. Both are context managers."""
    draws = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    fits = console.width >= NARROWEST and console.height >= LOWEST
    return LiveDashboard(console) if draws and fits else PlainReporter(console)
