"""How plots are drawn: as SVG whose colours and fonts are the page's, so that they follow light and dark mode."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esalign.run.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF, WIDE = 5.2, 10.7  # inches; both come out with the same size of type
HEIGHT = 2.5
LEFT, RIGHT, BOTTOM, TOP, LEGEND = 0.62, 0.16, 0.46, 0.08, 0.3  # margins, inches; LEGEND: on top, with a legend
# Okabe and Ito's palette, which the colour-blind can tell apart. Each becomes the page's variable of that name.
BLUE, ORANGE, GREEN, GREY, INK, GRID = "#0072b2", "#d55e00", "#009e73", "#777777", "#222222", "#dddddd"
VARIABLES = {BLUE: "blue", ORANGE: "orange", GREEN: "green", GREY: "grey", INK: "ink", GRID: "grid"}
STYLE: Any = {  # its keys are typed as literals
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "esalign",  # the same run gives the same file
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.borderaxespad": 0,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
}


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Args:
        title: above it.
        caption: below it: how to read it.
        svg: the drawing.
        wide: whether it takes the page's whole width.
    """

    title: str
    caption: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Axis:
    """Values of one axis, with its label."""

    label: str
    values: Sequence[float]
    integer: bool = False


TOKEN_UNITS = ((1e9, "billion "), (1e6, "million "), (1e3, "thousand "), (1.0, ""))
TIME_UNITS = ((3600.0, ", hours"), (60.0, ", minutes"), (1.0, ", seconds"))


def scaled(values: Sequence[float], units: Sequence[tuple[float, str]], what: str) -> Axis:
    """Return an axis in the largest unit that the largest value holds twice."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    size, name = next((unit for unit in units if largest >= 2 * unit[0]), units[-1])
    label = f"{what}{name}" if name.startswith(",") else f"{name}{what}"
    return Axis(label, [value / size for value in values])


def draw(
    paint: Callable[["Axes"], None],
    width: float = HALF,
    height: float = HEIGHT,
    *,
    left: float = LEFT,
    legend: bool = False,
) -> str:
    """Return one pair of axes as a part of a page: SVG of no fixed size, in the page's font and named colours.

    Margins are the same for all, so that plots line up; a legend stands above the axes, where it hides nothing.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        top = LEGEND if legend else TOP
        figure.subplots_adjust(left / width, BOTTOM / height, 1 - RIGHT / width, 1 - top / height)
        axes = figure.add_subplot()
        paint(axes)
        if legend:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=4)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    for color, name in VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def set_labels(axes: "Axes", x: str, y: str, *, integer: bool = False) -> None:
    """Name both axes; with integer, the x axis has whole numbers only."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.02)
    if integer:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def drawable(value: Estimate | None) -> Estimate:
    """Return an estimate that can be drawn: a bound that is not finite becomes the mean."""
    if value is None:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = (bound if math.isfinite(bound) else value.mean for bound in (value.low, value.high))
    return Estimate(value.mean, low, high, value.count)
