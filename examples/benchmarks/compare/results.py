"""Reading results, and the figures that tables and plots show of them."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROWS

from esalign.files import read_json_lines
from esalign.run.statistics import Z95, Estimate, estimate, paired_difference
from esalign.types import Array

PARAMETERS = 0.92e6
SHARES = (0.5, 0.75, 0.9)
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % points of Student's t, by the number of runs; for more, the normal one."""


@dataclass(frozen=True)
class Result:
    """One row with one seed: what was run, the snapshots on its way, and the one that validation chose."""

    head: Mapping[str, Any]
    points: list[dict[str, Any]]
    best: Mapping[str, Any]

    def scores(self, name: str) -> Array:
        """Return the chosen snapshot's mean score on each problem: greedy, sampled, at 0.7, or probe."""
        text = self.best["probe_scores"] if name == "probe" else self.best["scores"][name]
        digits = np.array([float(digit) for digit in text])
        problems = len(digits) if name == "probe" else len(self.best["scores"]["greedy"])
        return digits.reshape(problems, -1).mean(axis=1)


def read_results(folder: Path) -> dict[str, list[Result]]:
    """Return all results by label, those of the table first, in its order."""
    found: dict[str, list[Result]] = {name: [] for name in ROWS}
    for file in sorted(folder.glob("*.seed*.jsonl")):
        head, *points, best = read_json_lines(file)
        found.setdefault(head["label"], []).append(Result(head, points, best))
    if not found["start"] or all(label == "start" for label, results in found.items() if results):
        sys.exit(
            f"'{folder}' holds no trained row beside the row 'start': run one, e.g. `compare start`, then `cma-es`"
        )
    return {label: results for label, results in found.items() if results}


def forward_flops(tokens: Mapping[str, int]) -> float:
    """Return 2 x parameters x tokens read forward; what is trained on is read once forward and twice backward."""
    read = tokens["prompt"] + tokens["generated"] + tokens["scored"] + 3 * tokens["trained"]
    return 2 * PARAMETERS * read


COSTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "processor seconds": lambda point: point["processor_seconds"],
    "generated tokens": lambda point: point["tokens"]["generated"],
    "forward FLOPs": lambda point: forward_flops(point["tokens"]),
}


def pooled(results: Iterable[Result], name: str) -> Estimate:
    """Return the mean over all problems of all seeds."""
    return estimate(np.concatenate([result.scores(name) for result in results]))


def gain(results: Iterable[Result], starts: Iterable[Result], name: str) -> Estimate:
    """Return the gain over the start on the same problems, all seeds together."""
    by_seed = {start.head["seed"]: start.scores(name) for start in starts}
    pairs = [
        (result.scores(name), by_seed[result.head["seed"]]) for result in results if result.head["seed"] in by_seed
    ]
    return paired_difference(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


def leads(results: Iterable[Result], others: Iterable[Result], name: str) -> dict[int, float]:
    """Return by how much results are ahead of others, by the seeds that both have."""
    by_seed = {other.head["seed"]: other.scores(name).mean() for other in others}
    ahead = {result.head["seed"]: float(result.scores(name).mean()) for result in results}
    return {seed: mean - by_seed[seed] for seed, mean in ahead.items() if seed in by_seed}


def over_runs(values: Sequence[float]) -> Estimate:
    """Return the mean of a number for each run, with Student's 95 % interval; that is infinite for one run."""
    count = len(values)
    mean = float(np.mean(values))
    half = STUDENT.get(count, Z95) * float(np.std(values, ddof=1)) / count**0.5 if count > 1 else float("inf")
    return Estimate(mean, mean - half, mean + half, count)


def changes_of(results: Iterable[Result], starts: Iterable[Result]) -> list[Array]:
    """Return the greedy score of each problem less the start's, by seed."""
    by_seed = {start.head["seed"]: start.scores("greedy") for start in starts}
    return [r.scores("greedy") - by_seed[r.head["seed"]] for r in results if r.head["seed"] in by_seed]


def with_start(results: Iterable[Result], starts: Iterable[Result]) -> list[Result]:
    """Return the results whose seed has a start."""
    seeds = {start.head["seed"] for start in starts}
    return [result for result in results if result.head["seed"] in seeds]


def curve(results: list[Result], starts: Iterable[Result], decoding: str, cost: str) -> tuple[Array, Array]:
    """Return costs and gains over the same problems' start, at the start and at each snapshot, means over the seeds.

    Args:
        results: at least one; each seed has a start.
        starts: their starts.
        decoding: greedy or sampled.
        cost: a name of `COSTS`.
    """
    by_seed = {start.head["seed"]: start.scores(decoding) for start in starts}
    count = min(len(result.points) for result in results)
    costs = [[COSTS[cost](point) for point in result.points[:count]] for result in results]
    gains = []
    for result in results:
        tests = [point["test"][decoding] for point in result.points[:count]]  # of the first test problems alone
        gains.append([test["mean"] - by_seed[result.head["seed"]][: test["count"]].mean() for test in tests])
    return np.array([0.0, *np.mean(costs, axis=0)]), np.array([0.0, *np.mean(gains, axis=0)])


def gone_back(results: list[Result]) -> tuple[list[Result], Array]:
    """Return results with each snapshot gone back, and the seconds that this took at each, means over the seeds."""
    points = [[{**point, "test": point["back"]["test"]} for point in result.points] for result in results]
    count = min(len(result.points) for result in results)
    seconds = [[point["back"]["processor_seconds"] for point in result.points[:count]] for result in results]
    back = [Result(result.head, of_it, result.best) for result, of_it in zip(results, points, strict=True)]
    return back, np.mean(seconds, axis=0)


def cost_to_reach(costs: Array, scores: Array, wanted: float) -> float | None:
    """Return where a curve first reaches a score, linear between snapshots; None if it never does."""
    above = np.flatnonzero(scores >= wanted)
    if not len(above):
        return None
    at = int(above[0])
    if at == 0:
        return 0.0
    share = (wanted - scores[at - 1]) / (scores[at] - scores[at - 1])
    return float(costs[at - 1] + share * (costs[at] - costs[at - 1]))


def seconds_to_reach(costs: Array, back: Array, scores: Array, wanted: float) -> float | None:
    """Return where a curve first reaches a score, and what going back takes there, or at the first snapshot.

    Args:
        costs: seconds at the start and at each snapshot.
        back: seconds of going back at each snapshot.
        scores: as costs.
        wanted: the score.
    """
    at = cost_to_reach(costs, scores, wanted)
    return None if at is None else at + float(np.interp(at, costs[1:], back))
