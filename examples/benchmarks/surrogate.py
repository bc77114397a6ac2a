"""Surrogate ESSA beside plain ESSA, on the embedded model and the quickstart's problems.

    python examples/benchmarks/surrogate.py run plain --backend torch --seed 0 --out results
    python examples/benchmarks/surrogate.py run surrogate --backend torch --seed 0 --out results
    python examples/benchmarks/surrogate.py table --out results

Each run validates its mean now and then, keeps the best, and judges that one on the test problems. A result that is
there is not made again. The table pairs the two rows of each engine and seed: what each had spent on searching when it
came to the mean that validation chose (held-out answers are not counted), and the paired difference of the two on the
test problems.
"""

import argparse
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from esalign.assets import asset
from esalign.commands.build import SearchParts, make_parts
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.loop import search
from esalign.run.evaluate import evaluate
from esalign.run.statistics import estimate, paired_difference
from esalign.seeds import Use, derive

ROWS = {
    "plain": (16, 2, ()),
    "surrogate": (20, 2, ("fitness.name=surrogate", "fitness.prompts=48", "optimizer.sigma=1")),
}
"""Generations, generations between validations, and overrides of quickstart.yaml."""


def main() -> None:
    """Run one row, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("row", choices=ROWS)
    runner.add_argument("--backend", default="torch")
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("overrides", nargs="*", help="laid over the row's, e.g. optimizer.sigma=0.3")
    for command in (runner, commands.add_parser("table")):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print_table(arguments.out)
        return
    file = arguments.out / f"{arguments.row}.{arguments.backend}.seed{arguments.seed}.json"
    if not file.exists():
        result = run_row(arguments.row, arguments.backend, arguments.seed, arguments.overrides)
        arguments.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result), encoding="utf-8")


def run_row(row: str, backend: str, seed: int, more: list[str]) -> dict[str, Any]:
    """Search, validating the mean now and then, and judge the best mean on the test problems."""
    generations, every, overrides = ROWS[row]
    fixed = (f"backend.name={backend}", f"run.seed={seed}", "scoring.workers=0")
    config = load_config([asset("quickstart.yaml")], [*fixed, *overrides, *more], schema=RunConfig)
    with ExitStack() as closing:
        parts = make_parts(config, closing)
        learner = parts.learner
        points: list[dict[str, float]] = []
        best, spent = np.zeros(learner.space.dim), dict.fromkeys(("generated", "scored", "processor", "wall"), 0.0)
        steps = search(learner.optimizer, learner.selection, generations=generations)
        for number in range(1, generations + 1):
            began = processor_seconds(), time.perf_counter()
            evaluation = next(steps).evaluation
            spent["processor"] += processor_seconds() - began[0]
            spent["wall"] += time.perf_counter() - began[1]
            spent["generated"] += evaluation.generated_tokens
            spent["scored"] += evaluation.scored_tokens
            if number % every == 0:
                score = judge(config, parts, learner.optimizer.mean, Use.VALIDATION, 0.0).mean()
                if score > max((point["validation"] for point in points), default=0.0):
                    best = learner.optimizer.mean
                points.append({"generation": number, "validation": float(score), **spent})
                print(json.dumps(points[-1]), flush=True)
        return {
            "points": points,
            "test": {
                name: judge(config, parts, best, Use.TEST, temperature).tolist()
                for name, temperature in (("greedy", 0.0), ("sampled", 1.0))
            },
        }


def judge(config: RunConfig, parts: SearchParts, vector: Any, use: Use, temperature: float) -> Any:
    """Return the scores of a search vector on held-out problems, with the decoding seeds of `esalign run`."""
    held_out = parts.held_out.test if use == Use.TEST else parts.held_out.validation
    section = config.sampling.model_copy(update={"temperature": temperature})
    sampling = section.make(seed=derive(config.run.seed, use))
    return evaluate(parts.learner.backend, held_out, vector, sampling).scores


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def print_table(out: Path) -> None:
    """Print a line per engine and seed for which both rows are there."""
    print("| engine, seed | plain: test, greedy | surrogate | difference | sampled: difference "
          "| generated tokens | fewer by | processor seconds | fewer by | wall-clock | fewer by |")  # fmt: skip
    print("|" + "---|" * 11)
    for file in sorted(out.glob("surrogate.*.json")):
        other = out / file.name.replace("surrogate", "plain")
        if not other.exists():
            continue
        surrogate, plain = (json.loads(path.read_text(encoding="utf-8")) for path in (file, other))
        costs = [chosen(result) for result in (plain, surrogate)]
        cells = [file.name.removeprefix("surrogate.").removesuffix(".json").replace(".seed", ", ")]
        cells += [str(estimate(result["test"]["greedy"])) for result in (plain, surrogate)]
        for name in ("greedy", "sampled"):
            difference = paired_difference(surrogate["test"][name], plain["test"][name])
            cells.append(f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
        for what in ("generated", "processor", "wall"):
            cells += [f"{costs[0][what]:,.0f}, {costs[1][what]:,.0f}", f"{costs[0][what] / costs[1][what]:.1f}"]
        print("| " + " | ".join(cells) + " |")


def chosen(result: dict[str, Any]) -> dict[str, float]:
    """Return the point of a result that validation chose, the first of equals."""
    point: dict[str, float] = max(result["points"], key=lambda point: point["validation"])
    return point


if __name__ == "__main__":
    main()
