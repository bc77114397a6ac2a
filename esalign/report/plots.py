"""The plots of a report, as SVG whose colours and fonts are the page's, so that they follow light and dark mode."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from esalign.statistics import Estimate
from esalign.wording import as_estimate, set_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF, WIDE = 5.2, 10.7  # inches; both come out with the same size of type
HEIGHT = 2.5
LEFT, RIGHT, BOTTOM, TOP, LEGEND = 0.62, 0.08, 0.46, 0.08, 0.3  # margins, inches; LEGEND: on top, with a legend
MOST_MARKERS = 60
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

Rows: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Args:
        title: above it.
        caption: below it: how to read it.
        svg: the drawing.
        wide: whether it takes the page's whole width.
        name: id of the title.
    """

    title: str
    caption: str
    svg: str
    wide: bool = False
    name: str = ""


@dataclass(frozen=True)
class Axis:
    """What validation scores are drawn over."""

    label: str
    values: Sequence[float]
    integer: bool = False


def draw_plots(rows: Rows, comparisons: Mapping[str, Mapping[str, Estimate]]) -> list[Plot]:
    """Return all plots that the rows of a run have numbers for."""
    searched = [row for row in rows if row.get("fitness")]
    validated = [row for row in rows if row.get("validation")]
    plots = []
    if len(validated) > 1:
        plots += _validation_plots(validated)
    if comparisons:
        plots.append(_comparison_plot(comparisons))
    if len(searched) > 1:
        plots += _search_plots(rows, searched)
    return [_named(plot, f"plot-{number}") for number, plot in enumerate(plots, start=1)]


def _validation_plots(rows: Rows) -> list[Plot]:
    """The score of the mean on validation problems, over generations, tokens and time."""
    generations = Axis("generation", [row["generation"] for row in rows], integer=True)
    scores = [_known(as_estimate(row["validation"])) for row in rows]
    tokens = _scaled([_total(row, "tokens", "generated") for row in rows], TOKEN_UNITS, "generated tokens")
    seconds = _scaled([_total(row, "machine", "search_seconds") for row in rows], TIME_UNITS, "search time")
    return [
        Plot(
            "Validation score of the distribution's mean",
            "The band is the 95 % interval over the problems; the dashed line is the start, with its own interval. The "
            "ring marks the best, which becomes the result.",
            _draw(lambda axes: _draw_scores(axes, generations, scores, note=True), WIDE, 3.1, top=LEGEND),
            wide=True,
        ),
        Plot(
            "Validation score over tokens",
            "The same, over what the search generated.",
            _draw(lambda axes: _draw_scores(axes, tokens, scores)),
        ),
        Plot(
            "Validation score over time",
            "The same, over the time that the search took.",
            _draw(lambda axes: _draw_scores(axes, seconds, scores)),
        ),
    ]


def _draw_scores(axes: "Axes", axis: Axis, scores: Sequence[Estimate], *, note: bool = False) -> None:
    x = list(axis.values)
    means, lows, highs = ([getattr(score, key) for score in scores] for key in ("mean", "low", "high"))
    start, best = scores[0], max(range(len(scores)), key=lambda i: means[i])
    axes.axhspan(start.low, start.high, color=GREY, alpha=0.12, linewidth=0)
    axes.axhline(start.mean, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label=f"start {start.mean:.3f}")
    axes.fill_between(x, lows, highs, color=BLUE, alpha=0.18, linewidth=0)
    marker = "o" if len(x) <= MOST_MARKERS else None
    axes.plot(x, means, color=BLUE, marker=marker, label="mean of the search distribution")
    axes.plot([x[best]], [means[best]], "o", markersize=9, markerfacecolor="none", markeredgecolor=ORANGE)
    if note:
        text = f"best {means[best]:.3f}"
        place = (x[best] - x[0]) / ((x[-1] - x[0]) or 1)
        side = "left" if place < 0.1 else "right" if place > 0.9 else "center"
        axes.annotate(text, (x[best], highs[best]), (0, 5), textcoords="offset points", ha=side, color=ORANGE)
        axes.margins(y=0.12)
        _legend(axes)
    _label(axes, axis.label, "mean reward", integer=axis.integer)


def _comparison_plot(comparisons: Mapping[str, Mapping[str, Estimate]]) -> Plot:
    """Start and result on every held-out set."""

    def paint(axes: "Axes") -> None:
        for side, color, offset, face in (("start", GREY, -0.13, "none"), ("result", BLUE, 0.13, BLUE)):
            for position, comparison in enumerate(comparisons.values()):
                value = _known(comparison[side])
                y = position + offset
                label = {"start": "start", "result": "aligned"}[side] if position == 0 else None
                axes.plot([value.low, value.high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
                axes.plot([value.mean], [y], "o", color=color, markerfacecolor=face, markersize=6, label=label)
        axes.set_yticks(range(len(comparisons)), [set_name(name) for name in comparisons])
        axes.set_ylim(len(comparisons) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        _label(axes, "mean reward", "")
        _legend(axes)

    caption = "Points are means over unseen problems, bars their 95 % intervals. The table gives the paired gains."
    height = 0.9 + 0.55 * len(comparisons)
    return Plot(
        "Start and result on unseen problems", caption, _draw(paint, WIDE, height, left=1.05, top=LEGEND), wide=True
    )


def _search_plots(rows: Rows, searched: Rows) -> list[Plot]:
    """What the optimiser saw and did, generation by generation."""
    x = [row["generation"] for row in searched]

    def series(name: str, inner: str | None = None) -> list[float]:
        values = [row.get(name) if inner is None else (row.get(name) or {}).get(inner) for row in searched]
        return [math.nan if value is None else float(value) for value in values]

    def fitness(axes: "Axes") -> None:
        mean, std = series("fitness", "mean"), series("fitness", "std")
        low, high = [m - s for m, s in zip(mean, std, strict=True)], [m + s for m, s in zip(mean, std, strict=True)]
        axes.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0, label="± 1 std")
        axes.plot(x, series("fitness", "max"), color=ORANGE, linewidth=1, label="best")
        axes.plot(x, mean, color=BLUE, label="mean")
        _label(axes, "generation", "fitness", integer=True)
        _legend(axes)

    def line(values: Sequence[float], label: str) -> str:
        def paint(axes: "Axes") -> None:
            axes.plot(x, values, color=BLUE)
            _label(axes, "generation", label, integer=True)
            axes.set_ylim(0, 1.08 * max((value for value in values if math.isfinite(value)), default=1.0) or 1.0)

        return _draw(paint)

    speed = _scaled(_speeds(rows, searched), TOKEN_UNITS, "tokens per second")
    plots = [
        Plot(
            "Fitness",
            "Mean, standard deviation and best of a generation's candidates, on problems that they share.",
            _draw(fitness, WIDE, 3.1, top=LEGEND),
            wide=True,
        ),
        Plot("Step size", "Sigma of the search distribution.", line(series("sigma"), "sigma")),
        Plot(
            "Spread between candidates",
            "Standard deviation of their fitness: what selection works with.",
            line(series("fitness", "std"), "std of fitness"),
        ),
        Plot("Distance from the start", "Norm of the distribution's mean.", line(series("mean_norm"), "norm of mean")),
        Plot("Speed", "Generated tokens per second of search.", line(speed.values, speed.label)),
        Plot("Length of answers", "Mean over all answers.", line(series("mean_tokens"), "tokens per answer")),
        Plot(
            "Cut answers",
            "Share of answers that reached the token limit.",
            line([100 * share for share in series("truncated")], "% of answers"),
        ),
    ]
    return [plot for plot in plots if plot.svg]


def _speeds(rows: Rows, searched: Rows) -> list[float]:
    """Tokens per second of each generation, from the running totals."""
    before = {row["generation"]: row for row in rows}
    speeds = []
    for row in searched:
        last = before.get(row["generation"] - 1, {})
        seconds = _total(row, "machine", "search_seconds") - _total(last, "machine", "search_seconds")
        tokens = _total(row, "tokens", "generated") - _total(last, "tokens", "generated")
        speeds.append(tokens / seconds if seconds > 0 else math.nan)
    return speeds


TOKEN_UNITS = ((1e9, "billion "), (1e6, "million "), (1e3, "thousand "), (1.0, ""))
TIME_UNITS = ((3600.0, ", hours"), (60.0, ", minutes"), (1.0, ", seconds"))


def _scaled(values: Sequence[float], units: Sequence[tuple[float, str]], what: str) -> Axis:
    """Return an axis in the largest unit that the largest value holds twice."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    size, name = next((unit for unit in units if largest >= 2 * unit[0]), units[-1])
    label = f"{what}{name}" if name.startswith(",") else f"{name}{what}"
    return Axis(label, [value / size for value in values])


def _draw(
    paint: Callable[["Axes"], None],
    width: float = HALF,
    height: float = HEIGHT,
    *,
    left: float = LEFT,
    top: float = TOP,
) -> str:
    """Return the SVG of one pair of axes, in margins that are the same for all, so that plots line up."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left / width, BOTTOM / height, 1 - RIGHT / width, 1 - top / height)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return adopt(buffer.getvalue())


def adopt(svg: str) -> str:
    """Return matplotlib's SVG as a part of a page: no prolog, no fixed size, the page's font and named colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    for color, name in VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


def _named(plot: Plot, name: str) -> Plot:
    """Return a plot whose ids are its own on a page of several, and whose drawing is named by its title."""
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", plot.svg)
    return replace(plot, svg=svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}"', 1), name=name)


def _label(axes: "Axes", x: str, y: str, *, integer: bool = False) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.02)
    if integer:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: "Axes") -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=4)


def _known(value: Estimate | None) -> Estimate:
    """Return an estimate that can be drawn: a bound that is not finite becomes the mean."""
    if value is None:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = (bound if math.isfinite(bound) else value.mean for bound in (value.low, value.high))
    return Estimate(value.mean, low, high, value.count)


def _total(row: Mapping[str, Any], section: str, key: str) -> float:
    return float((row.get(section) or {}).get(key) or 0.0)
