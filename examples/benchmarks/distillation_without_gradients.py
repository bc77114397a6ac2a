"""Distillation without gradients beside distillation with them, from one student to one teacher.

    python examples/distillation/make_pair.py
    python examples/benchmarks/distillation_without_gradients.py [--seed 0] [--engines torch llama-cpp]

The search runs first; then gradients get as many rollout tokens, and then as many seconds, as the first engine's search
took. Every run is an `esalign` command in a process of its own, so that its peak memory is its own. All students are
then judged alike, as they are after the last generation or update: by their reverse KL to the teacher along answers
that they sample to test problems. (A run itself keeps the student with the best validation reward, which such a weak
student hardly ever earns.) Finished runs are kept.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from esalign.assets import EMBEDDED
from esalign.commands.build import load_splits
from esalign.config.distill import DistillConfig
from esalign.config.reading import load_config
from esalign.distill.learner import held_out_reverse_kl
from esalign.distill.models import make_judge, make_pair
from esalign.distill.rollout import RolloutOptions
from esalign.distill.sources import set_student
from esalign.engines.loading import LoadedModel, load_model
from esalign.run.checkpoint import Checkpoints
from esalign.run.statistics import estimate, paired_difference
from esalign.space import SvdLora
from esalign.types import Array

CONFIGS = Path(__file__).parents[1] / "distillation"
ADAPTER = "build/pair/adapter"
WITH_GRADIENTS = [
    "student.path=embedded",
    f"student.adapter={ADAPTER}",
    "student.tuning=lora",
    "run.generations=100000",
]


def run(command: str, config: str, folder: Path, *overrides: object) -> dict[str, Any]:
    """Run an esalign command with one thread, unless it has finished before, and return its result."""
    if not (folder / "result.json").exists():
        own = [f"run.name={folder.name}", f"run.dir={folder.parent}", *map(str, overrides)]
        resume = ["--resume"] if folder.exists() else []
        program = [sys.executable, "-c", "from esalign.cli import main; main()"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*program, command, str(CONFIGS / config), *own, *resume], check=True, env=environment)
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def run_all(out: Path, engines: list[str], seed: int) -> dict[str, Path]:
    """Run the search on every engine, then gradients at its tokens and at its time. Returns {label: folder}."""
    folders = {}
    for engine in engines:
        label = f"CMA-ES, {engine}"
        folders[label] = out / f"{engine}-{seed}"
        run("run", "embedded_without_gradients.yaml", folders[label], f"backend.name={engine}", f"run.seed={seed}")
    spent = run("run", "embedded_without_gradients.yaml", folders[f"CMA-ES, {engines[0]}"])["totals"]
    limits = {
        "tokens": f"run.max_generated_tokens={spent['tokens']['generated']}",
        "time": f"run.max_minutes={spent['machine']['search_seconds'] / 60}",
    }
    for name, limit in limits.items():
        folders[f"gradients, equal {name}"] = out / f"gradients-{name}-{seed}"
        settings = [*WITH_GRADIENTS, limit, f"run.seed={seed}"]
        run("distill", "embedded.yaml", folders[f"gradients, equal {name}"], *settings)
    return folders


@torch.no_grad()
def last_student(folder: Path | None) -> LoadedModel:
    """Return the student after a run's last generation or update; None: as it started."""
    student = load_model("student", EMBEDDED, ADAPTER, dtype="float32", device="cpu")
    state = {} if folder is None else Checkpoints(folder / "checkpoints").load_last() or {}
    if "optimizer" in state:
        set_student(student.model, SvdLora.from_pretrained(ADAPTER), state["optimizer"]["mean"])
    elif "trainer" in state:
        parameters = dict(student.model.named_parameters())
        for name, values in state["trainer"]["weights"].items():
            parameters[name].copy_(torch.from_numpy(values))
    return student


def judge(folder: Path | None, seed: int) -> Array:
    """Return the reverse KL to the teacher along a student's own answers to the test problems, shape (problems,)."""
    config = load_config([CONFIGS / "embedded.yaml"], [f"run.seed={seed}"], schema=DistillConfig)
    student = last_student(folder)
    pair = make_pair(student, load_model("teacher", config.teacher.path, None, dtype="float32", device="cpu"))
    encode = make_judge(student, pair.vocabulary, sequences=50).encode
    prompts = [encode(example.prompt) for example in load_splits(config).test.examples]
    options = RolloutOptions(config.sampling.max_tokens, sequences=50)
    return held_out_reverse_kl(pair, prompts, options, seed=seed)[0]


def main() -> None:
    """Run, judge, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", default=["torch", "llama-cpp"])
    parser.add_argument("--out", type=Path, default=Path("build/distillation_without_gradients"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders = run_all(options.out, options.engines, options.seed)
    start = judge(None, options.seed)
    print("\n| | reverse KL | change | rollout tokens | tokens read | seconds | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    print(f"| start | {estimate(start)} | | | | | |")
    for label, folder in folders.items():
        spent, nats = run("", "", folder)["totals"], judge(folder, options.seed)
        tokens, machine = spent["tokens"], spent["machine"]
        cost = f"{tokens['generated']:,} | {tokens['scored']:,} | {machine['search_seconds']:.0f}"
        change = paired_difference(nats, start)
        print(f"| {label} | {estimate(nats)} | {change} | {cost} | {machine['peak_rss_mib']:.0f} |", flush=True)
    print(f"\n{len(start)} test problems, seed {options.seed}; updates or generations: ", end="")
    print(", ".join(f"{label} {_last(folder)}" for label, folder in folders.items()))


def _last(folder: Path) -> int:
    return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["generation"])


if __name__ == "__main__":
    main()
