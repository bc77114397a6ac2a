"""Figures of the results: test accuracy against processor time, generated tokens and forward FLOPs."""

from pathlib import Path
from typing import Any

from results import COSTS, Result, curve, pooled, read_results, with_start
from rows import ROWS

STYLES = {
    "grpo": ("black", "-"),
    "grpo-singular": ("gray", "-"),
    "surrogate": ("crimson", "-"),
    "defaults": ("navy", "-"),
    "cma-es-full": ("tab:green", "--"),
}
SKIPPED = ("start",)


def draw(folder: Path) -> None:
    """Write ``curves_greedy`` and ``curves_sampled`` as svg and png into the folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    results = {label: found for label, found in read_results(folder).items() if label in ROWS}
    for decoding in ("greedy", "sampled"):
        figure, axes = plt.subplots(1, len(COSTS), figsize=(15, 5.5), sharey=True)
        for axis, cost in zip(axes, COSTS, strict=True):
            draw_costs(axis, results, decoding, cost)
        axes[0].set_ylabel(f"test accuracy, {decoding}")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0.13, 1, 1))
        for kind in ("svg", "png"):
            figure.savefig(folder / f"curves_{decoding}.{kind}", dpi=110)
        plt.close(figure)


def draw_costs(axis: Any, results: dict[str, list[Result]], decoding: str, cost: str) -> None:
    """Draw the rows' mean curves over one kind of cost, with the seeds as thin lines."""
    start = pooled(results["start"], decoding).mean
    axis.axhline(start, color="0.7", linestyle=":", label="SFT start")
    judged = {label: with_start(found, results["start"]) for label, found in results.items() if label not in SKIPPED}
    trained = {label: found for label, found in judged.items() if found}
    for number, (label, found) in enumerate(trained.items()):
        colour, line = STYLES.get(label, (f"C{number % 10}", "--" if number % 2 else "-"))
        for result in found:
            costs, gains = curve([result], results["start"], decoding, cost)
            axis.plot(costs[1:], start + gains[1:], color=colour, linewidth=0.5, alpha=0.4)
        costs, gains = curve(found, results["start"], decoding, cost)
        axis.plot(costs[1:], start + gains[1:], line, color=colour, marker=".", label=ROWS[label].title)
    axis.set_xscale("log")
    axis.set_xlabel(cost)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
