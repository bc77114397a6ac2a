"""Draw the pictures of the README from a finished run: the dashboard as it ended, and the report's first plot.

    esalign run run.seed=0                          # some minutes on two cores
    python docs/images/draw.py runs/quickstart

This looks inside esalign (`esalign.report`), as no program but esalign itself draws these.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

from rich.console import Console

from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.report.page.plots import draw_plots
from esalign.report.page.source import read_run
from esalign.report.terminal import LiveDashboard
from esalign.run.reporter import About

HERE = Path(__file__).parent
COLORS = {"blue": "#0072b2", "orange": "#c24e00", "green": "#007a59", "ink": "#1c2128", "grey": "#6e7781"}
COLORS |= {"grid": "#e6eaee", "font": "sans-serif"}
WIDTH = 100  # columns


def draw_dashboard(folder: Path) -> str:
    """Return the dashboard of a run as rich draws it, SVG."""
    console = Console(record=True, width=WIDTH, height=40, file=io.StringIO(), force_terminal=True, highlight=False)
    config = load_config([folder / "config.yaml"], schema=RunConfig)
    about = About("search", config.describe(), config.run, config.sampling.max_tokens)
    dashboard = LiveDashboard(console)
    with contextlib.chdir(folder.parents[1]):  # so that the picture names the folder as a user would
        dashboard.start(about, Path(*folder.parts[-2:]), 0)
    console.print(dashboard)
    svg = console.export_svg(title="esalign run", unique_id="dashboard")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # nothing is loaded from elsewhere


def draw_plot(folder: Path) -> str:
    """Return the plot of the validation score as an SVG that stands alone, on white."""
    files = read_run(folder)
    svg = draw_plots(files.rows, files.comparisons, files.words)[0].svg
    for name, value in COLORS.items():
        svg = svg.replace(f"var(--{name})", value)
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', svg, count=1)


if __name__ == "__main__":
    run = Path(sys.argv[1]).resolve()
    (HERE / "dashboard.svg").write_text(draw_dashboard(run))
    (HERE / "validation.svg").write_text(draw_plot(run))
