"""What is plotted of a run: whatever its rows have numbers for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from esalign.report.page.drawing import (
    BLUE,
    GREY,
    LEFT,
    ORANGE,
    TIME_UNITS,
    TOKEN_UNITS,
    WIDE,
    Axis,
    Plot,
    draw,
    drawable,
    scaled,
    set_labels,
)
from esalign.report.words import Words, as_estimate, set_name
from esalign.run.learner import MINUS_REVERSE_KL
from esalign.run.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MARKERS = 60
TALL = 3.1  # inches, of plots that take the page's whole width
LETTER = 0.075  # inches, of a label
CLOSENESS = f"/{MINUS_REVERSE_KL}"  # in the name of a held-out set whose numbers are no rewards

Rows: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Series:
    """A number of every generation.

    Args:
        title, caption, label: of its plot and its axis.
        path: keys that lead to it in a row.
        factor: from the row's unit to the label's.
    """

    title: str
    caption: str
    label: str
    path: tuple[str, ...]
    factor: float = 1.0


SERIES = (
    _Series("Loss", "Mean over the completed tokens of an update.", "loss", ("loss",)),
    _Series("Step size", "Sigma of the search distribution.", "sigma", ("sigma",)),
    _Series("Problems", "How many each candidate completed.", "problems per generation", ("prompts",)),
    _Series(
        "Spread between candidates",
        "Standard deviation of their fitness: what selection works with.",
        "std of fitness",
        ("fitness", "std"),
    ),
    _Series("Distance from the start", "Norm of the distribution's mean.", "norm of mean", ("mean_norm",)),
    _Series("Reward", "Mean over the completions of the generation, whoever wrote them.", "mean reward", ("reward",)),
    _Series(
        "Distance from the start's completions",
        "KL of the start to the candidates, on completions that it samples.",
        "nats per token",
        ("kl_to_start",),
    ),
    _Series("Distance from the rollouts", "KL to the policy that drew them.", "nats per token", ("kl_to_rollouts",)),
    _Series("Clipped tokens", "Share of tokens at the clip of the surrogate.", "% of tokens", ("clipped",), 100),
    _Series("Reverse KL to the teacher", "On the rollouts of each update.", "nats per token", ("reverse_kl",)),
    _Series("Pull of the teacher", "Mean beta: 0 samples from the student, 1 from the teacher.", "beta", ("beta",)),
    _Series("Distance of the rollouts", "KL of who samples to the student.", "nats per token", ("kl_student",)),
    _Series("Entropy of the teacher", "On the prefixes that were visited.", "nats", ("teacher_entropy",)),
    _Series("Gradient", "Norm, before clipping.", "norm", ("grad_norm",)),
    _Series(
        "Signal",
        "Share of it in the variance between candidates' mean rewards; the rest is luck.",
        "% of variance",
        ("reliability",),
        100,
    ),
    _Series("Length of completions", "Mean over all completions.", "tokens per completion", ("mean_tokens",)),
    _Series(
        "Cut completions", "Share of completions that reached the token limit.", "% of completions", ("truncated",), 100
    ),
)


def draw_plots(rows: Rows, comparisons: Mapping[str, Mapping[str, Estimate]], words: Words) -> list[Plot]:
    """Return all plots that the rows of a run have numbers for."""
    searched = [row for row in rows if row.get("fitness")]
    plots = _validation_plots([row for row in rows if row.get("validation")], words)
    plots += _comparison_plots(comparisons, words)
    if len(searched) > 1:
        plots += _fitness_plots(searched, words)
        plots += _series_plots(searched, words)
        plots.append(_speed_plot(rows, searched, words))
    return plots


def _validation_plots(rows: Rows, words: Words) -> list[Plot]:
    """Scores on validation problems, over generations, tokens and time."""
    if len(rows) < 2:
        return []
    steps = Axis(words.step, [row["generation"] for row in rows], integer=True)
    scores = [drawable(as_estimate(row["validation"])) for row in rows]
    tokens = scaled([_total(row, "tokens", "generated") for row in rows], TOKEN_UNITS, "generated tokens")
    seconds = scaled([_total(row, "machine", "search_seconds") for row in rows], TIME_UNITS, f"{words.work} time")
    plots = [
        Plot(
            "Validation score",
            f"The {words.learner} on validation problems. The band is the 95 % interval over the problems; the dashed "
            "line is the start, with its own interval. The ring marks the best, of which the result is "
            "made unless its gain over the start is within the noise.",
            draw(lambda axes: _paint_scores(axes, steps, scores, words, note=True), WIDE, TALL, legend=True),
            wide=True,
        ),
        Plot(
            "Validation score over tokens",
            f"The same, over what the {words.work} generated.",
            draw(lambda axes: _paint_scores(axes, tokens, scores, words)),
        ),
        Plot(
            "Validation score over time",
            f"The same, over the time that the {words.work} took.",
            draw(lambda axes: _paint_scores(axes, seconds, scores, words)),
        ),
    ]
    distances = [as_estimate(row.get(f"validation/{MINUS_REVERSE_KL}")) for row in rows]
    if any(distances):
        known = [drawable(distance) for distance in distances]
        painted = draw(lambda axes: _paint_band(axes, steps, known, "minus nats per token"), WIDE, TALL)
        caption = (
            f"On completions of the {words.learner} to validation problems, with the 95 % interval over the problems."
        )
        plots.append(Plot("Closeness to the teacher, held out", caption, painted, wide=True))
    return plots


def _paint_band(axes: "Axes", axis: Axis, scores: Sequence[Estimate], label: str, *, line: str | None = None) -> None:
    """Draw means with their intervals as a band."""
    x = list(axis.values)
    lows, means, highs = ([getattr(score, key) for score in scores] for key in ("low", "mean", "high"))
    axes.fill_between(x, lows, highs, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(x, means, color=BLUE, marker="o" if len(x) <= MOST_MARKERS else None, label=line)
    set_labels(axes, axis.label, label, integer=axis.integer)


def _paint_scores(axes: "Axes", axis: Axis, scores: Sequence[Estimate], words: Words, *, note: bool = False) -> None:
    start, best = scores[0], max(range(len(scores)), key=lambda i: (scores[i].mean, i))
    axes.axhspan(start.low, start.high, color=GREY, alpha=0.12, linewidth=0)
    axes.axhline(start.mean, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label=f"start {start.mean:.3f}")
    _paint_band(axes, axis, scores, words.measure, line=words.learner)
    x = list(axis.values)
    axes.plot([x[best]], [scores[best].mean], "o", markersize=9, markerfacecolor="none", markeredgecolor=ORANGE)
    if note:
        place = (x[best] - x[0]) / ((x[-1] - x[0]) or 1)
        side = "left" if place < 0.1 else "right" if place > 0.9 else "center"
        where, text = (x[best], scores[best].high), f"best {scores[best].mean:.3f}"
        axes.annotate(text, where, (0, 5), textcoords="offset points", ha=side, color=ORANGE)
        axes.margins(y=0.12)


def _comparison_plots(comparisons: Mapping[str, Mapping[str, Estimate]], words: Words) -> list[Plot]:
    """Start and result on every held-out set; what is no reward has an axis of its own."""
    rewards = {name: sides for name, sides in comparisons.items() if CLOSENESS not in name}
    others = {name: sides for name, sides in comparisons.items() if CLOSENESS in name}
    caption = "Points are means over unseen problems, bars their 95 % intervals. The table gives the paired gains."
    plots = []
    for sets, title, label in (
        (rewards, "Start and result on unseen problems", "mean reward"),
        (others, "Closeness on unseen problems", "minus nats per token"),
    ):
        if sets:
            left = max(LEFT, 0.2 + LETTER * max(len(set_name(name)) for name in sets))
            height = 0.9 + 0.55 * len(sets)
            paint = partial(_paint_pairs, sets=sets, label=label, words=words)
            svg = draw(paint, WIDE, height, left=left, legend=True)
            plots.append(Plot(title, caption, svg, wide=True))
    return plots


def _paint_pairs(axes: "Axes", sets: Mapping[str, Mapping[str, Estimate]], label: str, words: Words) -> None:
    for side, name, color, offset, face in (
        ("start", "start", GREY, -0.13, "none"),
        ("result", words.result, BLUE, 0.13, BLUE),
    ):
        for position, comparison in enumerate(sets.values()):
            value, y = drawable(comparison[side]), position + offset
            axes.plot([value.low, value.high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
            shown = name if position == 0 else None
            axes.plot([value.mean], [y], "o", color=color, markerfacecolor=face, markersize=6, label=shown)
    axes.set_yticks(range(len(sets)), [set_name(name) for name in sets])
    axes.set_ylim(len(sets) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    set_labels(axes, label, "")


def _fitness_plots(rows: Rows, words: Words) -> list[Plot]:
    """The fitness of the candidates; of an update there is but the loss, which is a series."""
    mean, std, best = (_numbers(rows, ("fitness", key)) for key in ("mean", "std", "max"))
    if not any(math.isfinite(value) for value in std):
        return []
    steps = _steps(rows)

    def paint(axes: "Axes") -> None:
        low, high = [m - s for m, s in zip(mean, std, strict=True)], [m + s for m, s in zip(mean, std, strict=True)]
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.18, linewidth=0, label="± 1 std")
        axes.plot(steps, best, color=ORANGE, linewidth=1, label="best")
        axes.plot(steps, mean, color=BLUE, label="mean")
        set_labels(axes, words.step, "fitness", integer=True)

    caption = "Mean, standard deviation and best of a generation's candidates, on problems that they share."
    return [Plot("Fitness", caption, draw(paint, WIDE, TALL, legend=True), wide=True)]


def _series_plots(rows: Rows, words: Words) -> list[Plot]:
    plots = []
    for series in SERIES:
        values = [series.factor * value for value in _numbers(rows, series.path)]
        if any(math.isfinite(value) for value in values):
            plots.append(Plot(series.title, series.caption, _draw_line(_steps(rows), values, words.step, series.label)))
    return plots


def _speed_plot(rows: Rows, searched: Rows, words: Words) -> Plot:
    """Tokens per second of each generation, from the running totals."""
    before = {row["generation"]: row for row in rows}
    speeds = []
    for row in searched:
        last = before.get(row["generation"] - 1, {})
        seconds = _total(row, "machine", "search_seconds") - _total(last, "machine", "search_seconds")
        tokens = _total(row, "tokens", "generated") - _total(last, "tokens", "generated")
        speeds.append(tokens / seconds if seconds > 0 else math.nan)
    speed = scaled(speeds, TOKEN_UNITS, "tokens per second")
    svg = _draw_line(_steps(searched), speed.values, words.step, speed.label)
    return Plot("Speed", f"Generated tokens per second of {words.work}.", svg)


def _draw_line(steps: Sequence[float], values: Sequence[float], step: str, label: str) -> str:
    def paint(axes: "Axes") -> None:
        axes.plot(steps, values, color=BLUE)
        set_labels(axes, step, label, integer=True)
        finite = [value for value in values if math.isfinite(value)]
        if finite and min(finite) >= 0:
            axes.set_ylim(0, 1.08 * max(finite) or 1.0)

    return draw(paint)


def _steps(rows: Rows) -> list[float]:
    return [row["generation"] for row in rows]


def _numbers(rows: Rows, path: Sequence[str]) -> list[float]:
    """Return a number of each row, NaN where it is missing."""
    values = []
    for row in rows:
        value: Any = row
        for key in path:
            value = (value or {}).get(key)
        values.append(math.nan if value is None else float(value))
    return values


def _total(row: Mapping[str, Any], section: str, key: str) -> float:
    return float((row.get(section) or {}).get(key) or 0.0)
