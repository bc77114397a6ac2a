"""Do the engines answer alike: the same candidates, the same held-out prompts, greedy, float32.

    python examples/benchmarks/agreement.py [--engines torch vllm llama-cpp] [--candidates 16] [--prompts 64]

The embedded model, candidates drawn around its adapter, and test problems of the quickstart. Each engine runs in a
process of its own and leaves its answers in a file; the files are compared afterwards. All engines also score the
answers of the first one, under every candidate: to prompt j, the answer of candidate j modulo their number.

For each pair of answers that differ, the gap says how much likelier, in nats, transformers + peft find the first
engine's token where the two part: about 1e-5 is a tie that rounding tips.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esalign.assets import EMBEDDED, adapter_path, asset, model_path
from esalign.commands.build import load_splits, make_backend
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.config.sections import BackendSection
from esalign.space import SvdLora
from esalign.testing.reference import Reference
from esalign.types import Array

Answers = list[list[list[int]]]
"""Token ids by candidate and prompt."""

AGREEMENT, TOLERANCE = 0.995, 1e-3  # what we aim at: share of equal answers, nats
THREADS = {"torch": {"threads": 1}, "llama-cpp": {"threads": 1}}


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["torch", "vllm", "llama-cpp"])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--spread", type=float, default=0.5, help="standard deviation of the candidates")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates")
    parser.add_argument("--alone", metavar="ENGINE", help="run one engine, in this process, into --folder")
    parser.add_argument("--folder", type=Path)
    return parser.parse_args()


def run_engine(name: str, options: argparse.Namespace) -> None:
    """Answer and score with one engine, and leave the results in its file."""
    config = load_config([asset("quickstart.yaml")], schema=RunConfig)
    space = SvdLora.from_pretrained(adapter_path(EMBEDDED))
    prompts = [example.prompt for example in load_splits(config).test.examples[: options.prompts]]
    candidates = draw_candidates(space, options)
    section = BackendSection(name=name, dtype="float32", device="cpu", options=THREADS.get(name, {}))
    backend = make_backend(section, EMBEDDED, space)
    rows = backend.generate(candidates, prompts, config.sampling.make(seed=0))
    answers = [[list(answer.token_ids) for answer in row] for row in rows]
    ids = [list(backend.encode(prompt)) for prompt in prompts]
    shared = options.folder / f"{options.engines[0]}.json"
    first = json.loads(shared.read_text())["answers"] if shared.exists() else answers
    sequences = [(prompt, first[j % len(first)][j]) for j, prompt in enumerate(ids)]
    scores = [[part.tolist() for part in row] for row in backend.score(candidates, sequences)]
    backend.close()
    content = {"prompts": ids, "answers": answers, "scores": scores}
    (options.folder / f"{name}.json").write_text(json.dumps(content))


def draw_candidates(space: SvdLora, options: argparse.Namespace) -> Array:
    """Return the candidates, shape (candidates, dim)."""
    return np.random.default_rng(options.seed).standard_normal((options.candidates, space.dim)) * options.spread


def compare(left: str, right: str, results: Mapping[str, Any], space: SvdLora, options: argparse.Namespace) -> bool:
    """Print how two engines agree, with every disagreement. Returns whether both aims are reached."""
    mine, theirs = results[left]["answers"], results[right]["answers"]
    pairs = [(i, j) for i, row in enumerate(mine) for j, answer in enumerate(row) if answer != theirs[i][j]]
    count = sum(map(len, mine))
    agreement = 1 - len(pairs) / count
    worst = max(
        float(np.abs(np.subtract(a, b)).max())
        for mine_row, their_row in zip(results[left]["scores"], results[right]["scores"], strict=True)
        for a, b in zip(mine_row, their_row, strict=True)
    )
    print(f"| {left}, {right} | {count - len(pairs)} of {count} ({agreement:.2%}) | {worst:.1e} |", flush=True)
    if pairs:
        explain(pairs, (mine, theirs), results[left]["prompts"], space, options)
    return agreement >= AGREEMENT and worst <= TOLERANCE


def explain(
    pairs: Sequence[tuple[int, int]],
    answers: tuple[Answers, Answers],
    prompts: Sequence[Sequence[int]],
    space: SvdLora,
    options: argparse.Namespace,
) -> None:
    """Print by how much the two tokens differ at which answers part, to see ties."""
    reference, candidates = Reference(model_path(EMBEDDED), space), draw_candidates(space, options)
    for i, j in pairs:
        one, other = (rows[i][j] for rows in answers)
        at = next(n for n, (a, b) in enumerate(itertools.zip_longest(one, other)) if a != b)
        logs = reference.log_probabilities(candidates[i], prompts[j], one[: at + 1])[at]
        gap = logs[one[at]] - logs[other[at]] if at < len(other) else float("inf")
        print(f"  candidate {i}, prompt {j}: token {at} of {len(one)}, gap {gap:+.1e} nats")


def main() -> None:
    """Run every engine in a process of its own, and compare; or, with --alone, run one."""
    options = read_options()
    if options.alone:
        run_engine(options.alone, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in options.engines:
            own = ["--alone", name, "--folder", folder]
            subprocess.run([sys.executable, __file__, *sys.argv[1:], *own], check=True)
        results = {name: json.loads((Path(folder) / f"{name}.json").read_text()) for name in options.engines}
    print(f"{options.candidates} candidates x {options.prompts} prompts, seed {options.seed}\n")
    print("| engines | equal answers | largest difference of a log-probability (nats) |\n|---|---|---|")
    space = SvdLora.from_pretrained(adapter_path(EMBEDDED))
    good = [compare(*pair, results, space, options) for pair in itertools.combinations(options.engines, 2)]
    print(f"\naims: {AGREEMENT:.1%} of the answers, {TOLERANCE:g} nats: {'reached' if all(good) else 'NOT REACHED'}")
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
