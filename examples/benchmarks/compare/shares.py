"""What part of GRPO's seconds other rows need to parts of its gain, with intervals over runs."""

from collections.abc import Sequence

import numpy as np
from results import SHARES, Result, curve, gone_back, seconds_to_reach, with_start
from rows import ROWS

from esalign.types import Array

RESAMPLES = 2000

Curve = tuple[Array, Array, Array]
"""Of one run: seconds at the start and at each snapshot, those of going back at each snapshot, and gains."""


def print_shares(rows: dict[str, list[Result]], starts: list[Result]) -> None:
    """Print shares of GRPO's seconds, of means over all seeds and, 95 %, where pairs of runs are drawn anew."""
    rows = {label: with_start(found, starts) for label, found in rows.items()}
    grpo = {one.head["seed"]: run_curve(one, starts) for one in rows.get("grpo", [])}
    lines = []
    for label, found in rows.items():
        if label in ("start", "grpo") or not grpo.keys() & {one.head["seed"] for one in found}:
            continue
        lines.append(line(ROWS[label].title, {one.head["seed"]: run_curve(one, starts) for one in found}, grpo))
        if all("back" in point for one in found for point in one.points):
            back = {one.head["seed"]: run_curve(one, starts, back=True) for one in found}
            lines.append(line("the same, gone back, with its seconds", back, grpo))
    if lines:
        shares = " | ".join(f"to {share:.0%}" for share in SHARES)
        print(f"\n| greedy: seconds, of GRPO's | seeds of both | {shares} |")
        print("\n".join(["|---|---" + "|---" * len(SHARES) + "|", *lines]))


def line(title: str, mine: dict[int, Curve], grpo: dict[int, Curve]) -> str:
    """Return one row's shares."""
    seeds = [seed for seed in mine if seed in grpo]
    rng = np.random.default_rng(0)
    resampled = [rng.choice(seeds, len(seeds)) for _ in range(RESAMPLES)]
    cells = []
    for share in SHARES:
        value = ratio(seeds, mine, grpo, share)
        low, high = np.percentile(
            [ratio(chosen, mine, grpo, share) for chosen in resampled], (2.5, 97.5), method="nearest"
        )
        cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(value) else "-")
    return f"| {title} | {len(seeds)} | {' | '.join(cells)} |"


def run_curve(result: Result, starts: list[Result], *, back: bool = False) -> Curve:
    """Return the curve of one run, each of its snapshots gone back or not."""
    seconds = np.zeros(len(result.points))
    if back:
        [result], seconds = gone_back([result])
    costs, gains = curve([result], starts, "greedy", "processor seconds")
    return costs, seconds, gains


def ratio(seeds: Sequence[int], mine: dict[int, Curve], grpo: dict[int, Curve], share: float) -> float:
    """Return what part of GRPO's seconds is needed to a share of GRPO's best gain, endless if that is never reached."""
    ours, theirs = (
        [np.mean(parts, axis=0) for parts in zip(*(of[s] for s in seeds), strict=True)] for of in (mine, grpo)
    )
    wanted = share * theirs[2].max()
    reached, others = seconds_to_reach(*ours, wanted), seconds_to_reach(*theirs, wanted)
    return float("inf") if reached is None or others is None else reached / others
