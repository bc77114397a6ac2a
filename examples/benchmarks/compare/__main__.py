"""ESSA against what a user would run instead: one command runs any row of the table.

    python examples/benchmarks/compare ROW [--seed S] [--budget SECONDS] [--out FOLDER] [key=value ...]
    python examples/benchmarks/compare --all            every row, three seeds
    python examples/benchmarks/compare sweep            GRPO's learning rates and group sizes, one seed
    python examples/benchmarks/compare table            Markdown of what is in the folder
    python examples/benchmarks/compare plot             figures of it

Every row starts from the shipped adapter and has the same problems, reward, decoding and processor seconds. A row
trains in a process of its own, which leaves snapshots; they are judged afterwards. Results are one jsonl file for each
row and seed; what is finished is skipped. Keys with a section are overrides of a run (``fitness.prompts=32``), others
options of the row's trainer (``lr=1e-3``); they make a variant of the row with a file of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rows import GRPO_SWEEP, ROWS, Row, label, make_config, make_options

BUDGET = 100.0
SEEDS = (0, 1, 2)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", choices=[*ROWS, "sweep", "table", "plot"])
    parser.add_argument("extra", nargs="*", metavar="key=value")
    parser.add_argument("--all", action="store_true", help="every row, three seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=BUDGET, help="processor seconds of training")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--train-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    extra = tuple(options.extra)
    if options.all:
        for seed in SEEDS:
            for row in ROWS.values():
                run(row, seed, (), options.budget, options.out)
    elif options.row is None:
        parser.error("name a row, or give --all")
    elif options.row == "sweep":
        for variant in GRPO_SWEEP:
            run(ROWS["grpo"], options.seed, variant, options.budget, options.out)
    elif options.row == "table":
        from tables import print_tables

        print_tables(options.out)
    elif options.row == "plot":
        from plots import draw

        draw(options.out)
    elif options.train_only:
        train(ROWS[options.row], options.seed, extra, options.budget, options.out)
    else:
        run(ROWS[options.row], options.seed, extra, options.budget, options.out)


def run(row: Row, seed: int, extra: tuple[str, ...], budget: float, out: Path) -> None:
    """Train and judge one row with one seed, unless that is done."""
    work = work_folder(row, seed, extra, out)
    file = out / f"{work.name}.jsonl"
    if file.exists():
        print(f"{file}: done before")
        return
    if row.kind != "start" and not (work / "training.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        arguments = [row.name, *extra, f"--seed={seed}", f"--budget={budget}", f"--out={out}", "--train-only"]
        subprocess.run([sys.executable, str(Path(__file__).parent), *arguments], check=True)
    lines = judge(row, seed, extra, out)
    out.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    part.replace(file)
    shutil.rmtree(work, ignore_errors=True)
    print(f"{file}: {json.dumps({key: lines[-1].get(key) for key in ('point', 'greedy', 'sampled', 'kl')})}")


def train(row: Row, seed: int, extra: tuple[str, ...], budget: float, out: Path) -> None:
    """Train one row, leaving snapshots and what they cost."""
    from meter import Meter

    config = make_config(row, seed, extra, out)
    meter = Meter(budget, work_folder(row, seed, extra, out))
    if row.kind.startswith("grpo"):
        from grpo import train_grpo

        train_grpo(config, make_options(row, extra), meter, singular=row.kind == "grpo-singular")
    else:
        import searching

        if row.kind == "full-es":
            searching.train_full(config, make_options(row, extra), meter)
        else:
            {"search": searching.train_search, "raw-lora": searching.train_raw_lora}[row.kind](config, meter)
    meter.finish()


def work_folder(row: Row, seed: int, extra: tuple[str, ...], out: Path) -> Path:
    """Return where a row's snapshots lie until they are judged."""
    return out / "work" / f"{label(row, extra)}.seed{seed}"


def judge(row: Row, seed: int, extra: tuple[str, ...], out: Path) -> list[dict[str, Any]]:
    """Return the lines of a result: what was run, each snapshot on its way, and the one that validation chose."""
    from judging import CURVE_PROBLEMS, Judge, interval

    config = make_config(row, seed, extra, out)
    work = work_folder(row, seed, extra, out)
    training = {"points": []} if row.kind == "start" else json.loads((work / "training.json").read_text())
    points = training.pop("points")
    with ExitStack() as closing:
        judge = Judge(config, closing)
        for point in points or [{"folder": None}]:
            snapshot = work / point.pop("folder") if points else None
            point["validation"] = judge.validate(snapshot)
        chosen = int(np.argmax([point["validation"]["greedy"] for point in points])) if points else None
        snapshots: list[Path | None] = [work / f"point{number + 1}" for number in range(len(points))]
        for point, snapshot in zip(points, snapshots, strict=True):
            scores = judge.test(snapshot, problems=CURVE_PROBLEMS)
            point["test"] = {name: interval(values) for name, values in scores.items()}
        best = snapshots[chosen] if chosen is not None else None
        scores = judge.test(best, problems=config.data.test_size)
        probe = judge.probe(best)
        kl = judge.kl(best) if best is not None else 0.0
    head = {"row": row.name, "label": label(row, extra), "seed": seed, "extra": extra, **training}
    result = {
        "point": chosen,
        "validation": points[chosen]["validation"] if chosen is not None else None,
        **{name: interval(values) for name, values in scores.items()},
        "probe": None if probe is None else interval(probe),
        "kl": kl,
        "scores": {name: "".join(str(int(value)) for value in values) for name, values in scores.items()},
        "probe_scores": None if probe is None else "".join(str(int(value)) for value in probe),
    }
    return [head, *points, result]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
