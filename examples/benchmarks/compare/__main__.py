"""ESSA against what a user would run instead: one command runs any row of the table.

    python examples/benchmarks/compare ROW [--task T] [--seed S] [--budget SECONDS] [--out FOLDER] [key=value ...]
    python examples/benchmarks/compare --all            every row, three seeds
    python examples/benchmarks/compare sweep            GRPO's learning rates and group sizes, one seed
    python examples/benchmarks/compare table            Markdown of what is in the folder
    python examples/benchmarks/compare plot             figures of it

Every row of a task starts from the same adapter, the shipped one or the task's own, and has the same problems, reward,
decoding and processor seconds. A row trains in a process of its own, which leaves snapshots; they are judged
afterwards. Results are one jsonl file for each row and seed; what is finished is skipped. Keys with a section are
overrides of a run (``fitness.prompts=32``), others options of the row's trainer (``lr=1e-3``); they make a variant of
the row with a file of its own.

Settings are chosen with ``--by-validation``: validation problems take the place of the test problems, and the last
snapshot counts. Results of that stand under ``choosing``; seeds from 10 on are kept for it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from problems import TASKS, find_adapter
from rows import GRPO_SWEEP, OPTIONS, ROWS, Row, label, make_config, make_options

from esalign.config.run import RunConfig

BUDGET = 100.0
SEEDS = (0, 1, 2)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", choices=[*ROWS, "sweep", "table", "plot"])
    parser.add_argument("extra", nargs="*", metavar="key=value")
    parser.add_argument("--all", action="store_true", help="every row, three seeds")
    parser.add_argument("--task", choices=TASKS, default="countdown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=BUDGET, help="processor seconds of training")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="a folder for each task stands in it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; raw-lora and full-es know the CPU alone")
    parser.add_argument("--by-validation", action="store_true", help="judge on validation problems, to choose settings")
    parser.add_argument("--train-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    refuse_faults(parser, options)
    if options.by_validation:
        options.out /= "choosing"
    same = {key: getattr(options, key) for key in ("task", "budget", "out", "device", "by_validation")}
    if options.all:
        for seed in SEEDS:
            for row in ROWS.values():
                run(Job(row, seed, **same))
    elif options.row is None:
        parser.error("name a row, or give --all")
    elif options.row == "sweep":
        for variant in GRPO_SWEEP:
            run(Job(ROWS["grpo"], options.seed, variant, **same))
    elif options.row == "table":
        from tables import print_tables

        print_tables(options.out / options.task)
    elif options.row == "plot":
        from plots import draw

        draw(options.out / options.task)
    else:
        job = Job(ROWS[options.row], options.seed, tuple(options.extra), **same)
        (train if options.train_only else run)(job)


def refuse_faults(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where a command line is wrong that argparse takes."""
    if options.budget <= 0 or options.seed < 0:
        parser.error(f"--budget is {options.budget:g} and --seed {options.seed}, expected above 0 s, and at least 0")
    for text in options.extra:
        key, _, value = text.partition("=")
        known = OPTIONS.get(ROWS[options.row].kind, ()) if options.row in ROWS else ()
        if options.row not in ROWS or not ("." in key or (key in known and is_number(value))):
            expected = " or ".join(["section.key=value", *(f"{name}=number" for name in known)])
            parser.error(f"{text!r} is no setting of {options.row}, expected {expected} behind a row")


def is_number(text: str) -> bool:
    """Tell whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Job:
    """One row with one seed.

    Args:
        row: what is trained.
        seed: of the problems and of the training.
        extra: ``key=value`` that make a variant of the row.
        task: the problems.
        budget: processor seconds of training.
        out: folder of the results.
        device: cpu or cuda.
        by_validation: whether validation problems judge instead of test problems.
    """

    row: Row
    seed: int
    extra: tuple[str, ...] = ()
    task: str = "countdown"
    budget: float = BUDGET
    out: Path = Path("runs/compare")
    device: str = "cpu"
    by_validation: bool = False

    @property
    def name(self) -> str:
        """Of its result and of its folder."""
        return f"{label(self.row, self.extra)}.seed{self.seed}"

    @property
    def home(self) -> Path:
        """Of the task's results."""
        return self.out / self.task

    @property
    def work(self) -> Path:
        """Where the snapshots lie until they are judged."""
        return self.home / "work" / self.name

    def config(self) -> RunConfig:
        """Return the configuration."""
        same = {key: getattr(self, key) for key in ("task", "seed", "extra", "device")}
        return make_config(self.row, self.home, **same)

    def arguments(self) -> list[str]:
        """Return the command line that trains it."""
        options = {key: getattr(self, key) for key in ("task", "seed", "budget", "out", "device")}
        return [self.row.name, *self.extra, *(f"--{key}={value}" for key, value in options.items()), "--train-only"]


def run(job: Job) -> None:
    """Train and judge one row with one seed, unless that is done."""
    file = job.home / f"{job.name}.jsonl"
    if file.exists():
        head = json.loads(file.read_text().partition("\n")[0])
        if head.get("budget", job.budget) != job.budget:
            sys.exit(f"{file} has a budget of {head['budget']:g} s, not {job.budget:g}: give another --out")
        print(f"{file}: done before")
        return
    trained = job.work / "training.json"
    of_now = trained.exists() and json.loads(trained.read_text())["budget"] == job.budget
    if job.row.kind != "start" and not of_now:
        shutil.rmtree(job.work, ignore_errors=True)
        job.config()  # poses problems and trains the start if need be, outside the process that is measured
        subprocess.run([sys.executable, str(Path(__file__).parent), *job.arguments()], check=True)
    lines = judge(job)
    job.home.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    part.replace(file)
    shutil.rmtree(job.work, ignore_errors=True)
    print(f"{file}: {json.dumps({key: lines[-1].get(key) for key in ('point', 'greedy', 'sampled', 'kl')})}")


def train(job: Job) -> None:
    """Train one row, leaving snapshots and what they cost."""
    from meter import Meter

    row, config = job.row, job.config().model_copy(update={"probe": None})  # off task, snapshots are judged afterwards
    meter = Meter(job.budget, job.work)
    if row.kind.startswith("grpo"):
        from grpo import train_grpo

        train_grpo(config, make_options(row, job.task, job.extra), meter, singular=row.kind == "grpo-singular")
    else:
        import searching

        if row.kind == "full-es":
            searching.train_full(config, make_options(row, job.task, job.extra), meter)
        else:
            {"search": searching.train_search, "raw-lora": searching.train_raw_lora}[row.kind](config, meter)
    meter.finish()


def judge(job: Job) -> list[dict[str, Any]]:
    """Return the lines of a result: what was run, each snapshot on its way, and the one that validation chose."""
    from judging import ON_THE_WAY, SAMPLES, Judge, interval

    config, row = job.config(), job.row
    training = {"points": []} if row.kind == "start" else json.loads((job.work / "training.json").read_text())
    points = training.pop("points")
    with ExitStack() as closing:
        judge = Judge(config, find_adapter(job.task, job.home), closing, by_validation=job.by_validation)
        for point in points or [{"folder": None}]:
            snapshot = job.work / point.pop("folder") if points else None
            point["validation"] = judge.validate(snapshot)
        validation = [point["validation"]["greedy"] for point in points]
        if job.by_validation:
            validation[:-1] = [-1.0] * (len(points) - 1)
        chosen = int(np.argmax(validation)) if points else None
        snapshots: list[Path | None] = [job.work / f"point{number + 1}" for number in range(len(points))]
        goes_back = row.kind == "search" and config.sampling.temperature == 0 and config.run.keep_sampled
        left: list[Path | None] = []
        for point, snapshot in zip(points, snapshots, strict=True):
            point["test"] = judge.on_the_way(snapshot)
            if goes_back and snapshot is not None:
                back, share, seconds = judge.step_back(snapshot)
                test = point["test"] if share == 1 else judge.on_the_way(back)
                point["back"] = {"share": share, "processor_seconds": round(seconds, 2), "test": test}
                left.append(back)
        best = snapshots[chosen] if chosen is not None else None
        whole = None
        if left and chosen is not None:
            whole = judge.test(best, problems=config.data.test_size, decodings=ON_THE_WAY, samples=SAMPLES)
            best = left[chosen]
        scores = judge.test(best, problems=config.data.test_size, samples=SAMPLES)
        probe = judge.probe(best)
        pass_at = judge.pass_at(best)
        kl = judge.kl(best) if best is not None else 0.0
    head = {"row": row.name, "label": label(row, job.extra), "seed": job.seed, "extra": job.extra, **training}
    result = {
        "point": chosen,
        "share": points[chosen]["back"]["share"] if left and chosen is not None else None,
        "whole_way": whole and {name: interval(values.mean(axis=1)) for name, values in whole.items()},
        "validation": points[chosen]["validation"] if chosen is not None else None,
        **{name: interval(values.mean(axis=1)) for name, values in scores.items()},
        "probe": None if probe is None else interval(probe),
        "kl": kl,
        "pass_at": pass_at,
        "scores": {name: "".join(str(int(value)) for value in values.flat) for name, values in scores.items()},
        "probe_scores": None if probe is None else "".join(str(int(value)) for value in probe),
    }
    return [head, *points, result]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
