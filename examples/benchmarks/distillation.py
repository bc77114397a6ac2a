"""Compare behaviours of on-policy distillation on the embedded pair.

    python examples/distillation/make_teacher.py --out build/teacher
    python examples/benchmarks/distillation.py [--seeds 5] [--tokens 150000] [--out build/distillation]

All behaviours get the same number of rollout tokens, problems and held-out problems. Finished runs are kept, so that
the comparison can be continued. Prints a Markdown table and draws ``curves.svg``.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esalign.config import load_config
from esalign.distill.config import DistillConfig
from esalign.distill.run import run_distill

HERE = Path(__file__).parents[1] / "distillation"
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by seeds
METHODS = {
    "TRB": ["behaviour.name=trust-region", "behaviour.budget=0.02", "behaviour.steps=25"],
    "plain OPD": ["behaviour.name=student"],
    "fixed budget": ["behaviour.name=trust-region", "behaviour.budget=0.02", "behaviour.steps=null"],
    "SKD": ["behaviour.name=speculative", "behaviour.top=5", "behaviour.steps=25"],
    "temperature": ["behaviour.name=temperature", "behaviour.temperature=0.9", "behaviour.steps=25"],
    "SFT warm-up": ["behaviour.name=sft", "behaviour.steps=25"],
}
BASELINE = "plain OPD"


class Quiet:
    """A reporter that says nothing but warnings."""

    def start(self, config: Any, folder: Path, done: int) -> None:
        """Say nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def generation(self, row: Mapping[str, Any]) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Print it."""
        print(f"warning: {text}", flush=True)


def run_all(out: Path, *, seeds: int, tokens: int, overrides: list[str]) -> dict[str, list[Path]]:
    """Run every method with every seed that has not been run yet. Returns the folders."""
    folders: dict[str, list[Path]] = {name: [] for name in METHODS}
    for seed in range(seeds):  # seed by seed, so that a stopped comparison is a fair one of fewer seeds
        for name, settings in METHODS.items():
            run = name.lower().replace(" ", "-") + f"-{seed}"
            folder = out / run
            if not (folder / "result.json").exists():
                own = [f"run.name={run}", f"run.dir={out}", f"run.seed={seed}", "run.generations=100000"]
                limits = [f"run.max_rollout_tokens={tokens}", "data.test_size=1000"]
                config = load_config(
                    [HERE / "embedded.yaml"], [*settings, *own, *limits, *overrides], schema=DistillConfig
                )
                run_distill(config, reporter=Quiet(), resume=folder.exists())
            folders[name].append(folder)
            print(f"{run}: {read(folder)['comparisons']['test/sampled']['result']['mean']:.3f}", flush=True)
    return folders


def read(folder: Path) -> dict[str, Any]:
    """Return how a run ended."""
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def over_seeds(values: np.ndarray) -> str:
    """Return the mean of one number per seed with its 95 % interval (Student's t)."""
    half = T95[len(values)] * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {half:.3f}"


def print_table(folders: dict[str, list[Path]]) -> None:
    """Print accuracy, its gain over the start and over plain OPD, and the reverse KL."""
    results = {name: [read(folder) for folder in group] for name, group in folders.items()}

    def column(name: str, key: str, side: str) -> np.ndarray:
        return np.array([result["comparisons"][key][side]["mean"] for result in results[name]])

    print("\n| method | accuracy, sampled | gain over the start | over plain OPD | accuracy, greedy | reverse KL |")
    print("|---|---|---|---|---|---|")
    for name in results:
        sampled, start = (column(name, "test/sampled", side) for side in ("result", "start"))
        against = "" if name == BASELINE else over_seeds(sampled - column(BASELINE, "test/sampled", "result"))
        greedy, closeness = (column(name, key, "result") for key in ("test/greedy", "test/minus reverse KL"))
        cells = [over_seeds(sampled), over_seeds(sampled - start), against, over_seeds(greedy), over_seeds(-closeness)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def draw(folders: dict[str, list[Path]], file: Path) -> None:
    """Draw validation accuracy against rollout tokens, mean over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, group in folders.items():
        curves = []
        for folder in group:
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            curves.append(
                [(row["tokens"]["generated"], row["validation"]["mean"]) for row in rows if "validation" in row]
            )
        length = min(map(len, curves))
        mean = np.array([curve[:length] for curve in curves]).mean(axis=0)
        axes.plot(mean[:, 0], mean[:, 1], label=name, marker="o", markersize=3)
    axes.set(xlabel="rollout tokens", ylabel="validation accuracy, sampled")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, choices=T95)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--out", type=Path, default=Path("build/distillation"))
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all runs")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    folders = run_all(options.out, seeds=options.seeds, tokens=options.tokens, overrides=options.overrides)
    print_table(folders)
    draw(folders, options.out / "curves.svg")


if __name__ == "__main__":
    main()
