"""Compare behaviours of on-policy distillation on the embedded pair, at equal rollout tokens.

    python examples/distillation/make_pair.py
    python examples/benchmarks/distillation.py sweep      # every method's settings, on validation problems of one seed
    python examples/benchmarks/distillation.py compare    # the chosen settings, five other seeds, test problems
    python examples/benchmarks/distillation.py report     # the tables again, and build/distillation/curves.svg

Finished runs are kept and interrupted ones go on, so that either can be continued.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esalign.commands.distill import run_distill
from esalign.config.distill import DistillConfig
from esalign.config.reading import load_config

CONFIG = Path(__file__).parents[1] / "distillation" / "embedded.yaml"
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by seeds
SWEEP_SEED = 100
LENGTH = ["run.max_generated_tokens=60000", "run.generations=100000", "run.evaluate_every=20"]  # about 70 updates
BASELINE = "plain OPD"


def warm_up(name: str, steps: int | None, **settings: float) -> list[str]:
    """Return the overrides of a behaviour."""
    chosen = {"name": name, "steps": "null" if steps is None else steps, **settings}
    return [f"behaviour.{key}={value}" for key, value in chosen.items()]


TRIES: dict[str, dict[str, list[str]]] = {
    "TRB": {
        f"eps {eps:g}, K {steps}": warm_up("trust-region", steps, budget=eps)
        for eps, steps in ((0.02, 10), (0.1, 10), (0.1, 30))
    },
    "plain OPD": {
        f"rate {rate:g}": [*warm_up("student", None), f"training.learning_rate={rate}"] for rate in (5e-4, 1e-3, 2e-3)
    },
    "fixed budget": {f"eps {eps:g}": warm_up("trust-region", None, budget=eps) for eps in (0.005, 0.02, 0.1)},
    "SKD": {
        f"top {top}, K {steps}": warm_up("speculative", steps, top=top) for top, steps in ((2, 10), (5, 10), (5, 30))
    },
    "temperature": {
        f"T {start:g}, K {steps}": warm_up("temperature", steps, temperature=start)
        for start, steps in ((0.8, 10), (0.9, 10), (0.8, 30))
    },
    "SFT warm-up": {f"K {steps}": warm_up("sft", steps) for steps in (4, 10, 20)},
}
"""Three tries of each method. The rate of plain OPD is that of all others, unless another one turns out better."""

CHOSEN = {  # the best of the three by validation accuracy, see docs/benchmarks.md
    "TRB": "eps 0.1, K 10",
    "plain OPD": "rate 0.001",
    "fixed budget": "eps 0.005",
    "SKD": "top 5, K 30",
    "temperature": "T 0.9, K 10",
    "SFT warm-up": "K 4",
}


class Quiet:
    """A reporter that says nothing but warnings."""

    def start(self, config: Any, folder: Path, done: int) -> None:
        """Say nothing."""

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say nothing."""

    def generation(self, row: Mapping[str, Any]) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Print it."""
        print(f"warning: {text}", flush=True)


def run(folder: Path, settings: list[str], *, seed: int) -> None:
    """Make one run, unless it is finished."""
    if not (folder / "result.json").exists():
        own = [f"run.name={folder.name}", f"run.dir={folder.parent}", f"run.seed={seed}", *LENGTH]
        config = load_config([CONFIG], [*own, *settings], schema=DistillConfig)
        run_distill(config, reporter=Quiet(), resume=folder.exists())


def folder_of(out: Path, method: str, label: str, seed: int) -> Path:
    """Return the folder of a run, ``trb_eps-0.02-k-15_seed-0``."""
    words = "_".join(part for part in (method, label, f"seed {seed}") if part)
    return out / words.lower().replace(", ", "-").replace(" ", "-").replace(".", "p")


def validations(folder: Path, key: str = "validation") -> np.ndarray:
    """Return a run's validations, shape (validations, 2): rollout tokens, mean."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([(row["tokens"]["generated"], row[key]["mean"]) for row in rows if key in row])


def print_sweep(out: Path) -> None:
    """Print what the methods' settings were chosen by: mean accuracy of the last three validations."""
    print("\n| method | settings | validation accuracy, last three | reverse KL, last three |\n|---|---|---|---|")
    for method, tries in TRIES.items():
        for label in tries:
            folder = folder_of(out, method, label, SWEEP_SEED)
            if (folder / "result.json").exists():
                accuracy, nats = (
                    validations(folder, key)[-3:, 1].mean() for key in ("validation", "validation/minus-reverse-kl")
                )
                print(f"| {method} | {label} | {accuracy:.3f} | {nats:.3f} |")


def over_seeds(values: np.ndarray) -> str:
    """Return the mean of one number per seed with its 95 % interval (Student's t)."""
    half = T95[len(values)] * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.3f} ± {half:.3f}"


def over_problems(gains: list[dict[str, float]]) -> str:
    """Return the mean of paired gains, one per seed, with the 95 % interval over all their problems."""
    half = np.sqrt(sum((gain["high"] - gain["low"]) ** 2 for gain in gains)) / 2 / len(gains)
    return f"{np.mean([gain['mean'] for gain in gains]):+.3f} ± {half:.3f}"


def print_comparison(folders: dict[str, list[Path]]) -> None:
    """Print accuracy and reverse KL on test problems, gains over the start, and differences from plain OPD."""
    results = {
        method: [json.loads((folder / "result.json").read_text())["comparisons"] for folder in group]
        for method, group in folders.items()
    }

    def column(method: str, key: str, side: str) -> np.ndarray:
        return np.array([result[f"test/{key}"][side]["mean"] for result in results[method]])

    for key in ("sampled", "greedy", "minus-reverse-kl"):
        print(f"\n| method | test, {key} | gain over the start | over plain OPD |\n|---|---|---|---|")
        print(f"| start | {column(BASELINE, key, 'start').mean():.3f} | | |")
        for method, group in results.items():
            values, others = (column(name, key, "result") for name in (method, BASELINE))
            gain = over_problems([result[f"test/{key}"]["gain"] for result in group])
            against = "" if method == BASELINE else over_seeds(values - others)
            print(f"| {method} | {values.mean():.3f} | {gain} | {against} |")


def print_costs(folders: dict[str, list[Path]]) -> None:
    """Print tokens, updates and seconds, means over seeds."""
    print("\n| method | rollout tokens | updates | tokens per rollout, first three updates | seconds of search |")
    print("|---|---|---|---|---|")
    for method, group in folders.items():
        cells = []
        for folder in group:
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            length = np.mean([row["mean_tokens"] for row in rows[1:4]])
            last = rows[-1]
            cells.append((last["tokens"]["generated"], last["generation"], length, last["machine"]["search_seconds"]))
        tokens, updates, length, seconds = np.mean(cells, axis=0)
        print(f"| {method} | {tokens:.0f} | {updates:.1f} | {length:.1f} | {seconds:.0f} |")


def draw(folders: dict[str, list[Path]], file: Path) -> None:
    """Draw validation accuracy and reverse KL against rollout tokens: every seed thinly, and their mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    labels = {"validation": "validation accuracy, sampled", "validation/minus-reverse-kl": "reverse KL, nats per token"}
    for panel, (key, label) in zip(axes, labels.items(), strict=True):
        for i, (method, group) in enumerate(folders.items()):
            curves = [validations(folder, key) for folder in group]
            grid = np.linspace(0, min(curve[-1, 0] for curve in curves), 40)
            values = [np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves]
            panel.plot(grid, np.transpose(values), color=f"C{i}", linewidth=0.6, alpha=0.4)
            panel.plot(grid, np.mean(values, axis=0), color=f"C{i}", label=method, linewidth=2.0)
        panel.set(xlabel="rollout tokens", ylabel=label)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Sweep, compare or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sweep", "compare", "report"))
    parser.add_argument("--methods", nargs="*", default=list(TRIES), choices=TRIES)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(5)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after these")
    parser.add_argument("--out", type=Path, default=Path("build/distillation"))
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    plan = {
        "sweep": [(m, label, SWEEP_SEED) for m in options.methods for label in TRIES[m]],
        "compare": [(m, CHOSEN[m], seed) for seed in options.seeds for m in options.methods],
        "report": [],
    }[options.what]
    began = time.monotonic()
    for method, label, seed in plan:
        if time.monotonic() - began < 60 * options.minutes:
            less = ["data.test_size=8"] if options.what == "sweep" else []
            run(folder_of(options.out, method, label, seed), [*TRIES[method][label], *less], seed=seed)
    print_sweep(options.out)
    folders = {m: [folder_of(options.out, m, CHOSEN[m], seed) for seed in options.seeds] for m in TRIES}
    if len(options.seeds) > 1 and all(
        (folder / "result.json").exists() for group in folders.values() for folder in group
    ):
        print_comparison(folders)
        print_costs(folders)
        draw(folders, options.out / "curves.svg")


if __name__ == "__main__":
    main()
