"""Markdown tables of the results."""

from pathlib import Path

import numpy as np
from results import (
    COSTS,
    SHARES,
    Result,
    changes_of,
    cost_to_reach,
    curve,
    forward_flops,
    gain,
    gone_back,
    leads,
    over_runs,
    pooled,
    read_results,
    seconds_to_reach,
    with_start,
)
from rows import ROWS
from shares import print_shares

from esalign.run.statistics import Estimate


def print_tables(folder: Path) -> None:
    """Print everything that is in a folder of results."""
    results = read_results(folder)
    starts = results["start"]
    rows = {label: found for label, found in results.items() if label in ROWS}
    print_rows(rows, starts)
    print_more(rows, starts)
    print_spread(rows, starts)
    print_back(rows, starts)
    print_ahead(rows)
    for decoding in ("greedy", "sampled"):
        for best_of in (rows, {"grpo": rows["grpo"]} if "grpo" in rows else {}):
            print_times(rows, starts, decoding, best_of)
    print_shares(rows, starts)
    print_work(rows)
    print_variants({label: found for label, found in results.items() if label not in ROWS}, results)


def print_rows(rows: dict[str, list[Result]], starts: list[Result]) -> None:
    """Print accuracy, cost and forgetting of each row's chosen snapshots."""
    print("\n| row | seeds | greedy | gain | sampled | gain | off task, gain | KL | steps | MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for label, found in rows.items():
        cells = [ROWS[label].title, str(len(found))]
        for name in ("greedy", "sampled"):
            cells += [f"{pooled(found, name).mean:.3f}", "" if label == "start" else signed(gain(found, starts, name))]
        if label != "start":
            memory = np.mean([result.head["peak_rss_mib"] for result in found])
            loaded = np.mean([result.head["loaded_mib"] for result in found])
            cells += [
                signed(gain(found, starts, "probe")),
                f"{np.mean([result.best['kl'] for result in found]):.3f}",
                f"{np.mean([result.head['steps'] for result in found]):.0f}",
                f"{memory:.0f} ({memory - loaded:+.0f})",
            ]
        print("| " + " | ".join(cells + [""] * (10 - len(cells))) + " |")


def print_more(rows: dict[str, list[Result]], starts: list[Result]) -> None:
    """Print further decodings, problems gained and lost (greedy, all seeds together), and what was spent.

    Rows with results of before these were judged are left out.
    """
    rows = {label: found for label, found in rows.items() if all("pass_at" in one.best for one in [*found, *starts])}
    if not rows:
        return
    ks = list(next(iter(rows.values()))[0].best["pass_at"])
    print(
        f"\n| row | at 0.7 | gain | {' | '.join(f'pass@{k}' for k in ks)} | gained | lost | seconds | tokens | FLOPs |"
    )
    print("|---" * (8 + len(ks)) + "|")
    for label, found in rows.items():
        cells = [ROWS[label].title, f"{pooled(found, 'at 0.7').mean:.3f}"]
        cells.append("" if label == "start" else signed(gain(found, starts, "at 0.7")))
        cells += [f"{np.mean([result.best['pass_at'][k] for result in found]):.3f}" for k in ks]
        if label != "start":
            changes = np.concatenate(changes_of(found, starts))
            last = [result.points[-1] for result in found]
            cells += [str(int((changes > 0).sum())), str(int((changes < 0).sum()))]
            cells.append(f"{np.mean([point['processor_seconds'] for point in last]):.0f}")
            cells.append(shortened(float(np.mean([point["tokens"]["generated"] for point in last]))))
            cells.append(shortened(float(np.mean([forward_flops(point["tokens"]) for point in last]))))
        print("| " + " | ".join(cells + [""] * (8 + len(ks) - len(cells))) + " |")


def print_spread(rows: dict[str, list[Result]], starts: list[Result]) -> None:
    """Print, over runs, the divergence from the start and the gain at each pass@k."""
    of_start = {start.head["seed"]: start.best["pass_at"] for start in starts if "pass_at" in start.best}
    ks = list(next(iter(of_start.values()), {}))
    print(f"\n| row | seeds | KL | {' | '.join(f'pass@{k}, gain' for k in ks)} |")
    print("|---" * (3 + len(ks)) + "|")
    for label, found in rows.items():
        judged = [one for one in found if "pass_at" in one.best and one.head["seed"] in of_start]
        pairs = [(one.best, of_start[one.head["seed"]]) for one in judged]
        if label == "start" or not pairs:
            continue
        values = [[best["kl"] for best, _ in pairs]]
        values += [[best["pass_at"][k] - start[k] for best, start in pairs] for k in ks]
        print(f"| {ROWS[label].title} | {len(pairs)} | {' | '.join(signed(over_runs(one)) for one in values)} |")


def print_back(rows: dict[str, list[Result]], starts: list[Result]) -> None:
    """Print, of rows some of whose results went back, how far, and what had been gained before, over runs."""
    of_start = {start.head["seed"]: start.best for start in starts}
    lines = []
    for label, found in rows.items():
        known = [one for one in found if one.best.get("whole_way") and one.head["seed"] in of_start]
        if all(one.best["share"] == 1 for one in known):
            continue
        cells = [ROWS[label].title, str(len(known)), ", ".join(f"{one.best['share']:g}" for one in known)]
        for name in ("greedy", "sampled"):
            gains = [one.best["whole_way"][name]["mean"] - of_start[one.head["seed"]][name]["mean"] for one in known]
            cells.append(signed(over_runs(gains)))
        lines.append(f"| {' | '.join(cells)} |")
    if lines:
        print("\n| row | seeds | of its way, by seed | before going back: greedy, gain | sampled, gain |")
        print("\n".join(["|---|---|---|---|---|", *lines]))


def print_ahead(rows: dict[str, list[Result]]) -> None:
    """Print how far the defaults are ahead of each other row on the same problems: over problems, over runs, by run."""
    mine = rows.get("defaults", [])
    if not mine:
        return
    others = {label: found for label, found in rows.items() if label not in ("start", "defaults")}
    print("\n| the defaults less | seeds of both | decoding | over problems | over runs | by seed |")
    print("|---|---|---|---|---|---|")
    for label, found in others.items():
        for name in ("greedy", "sampled"):
            ahead = leads(mine, found, name)
            if ahead:
                pairs = [result for result in mine if result.head["seed"] in ahead]
                cells = [signed(gain(pairs, found, name)), signed(over_runs(list(ahead.values())))]
                cells.append(", ".join(f"{value:+.3f}" for value in ahead.values()))
                print(f"| {ROWS[label].title} | {len(ahead)} | {name} | {' | '.join(cells)} |")


def print_times(
    rows: dict[str, list[Result]], starts: list[Result], decoding: str, best_of: dict[str, list[Result]]
) -> None:
    """Print what it cost to get half, three quarters and nine tenths of the best gain of some rows."""
    judged = {label: with_start(found, starts) for label, found in rows.items() if label != "start"}
    trained = {label: found for label, found in judged.items() if found}
    curves = [curve(trained[label], starts, decoding, "processor seconds")[1] for label in best_of if label in trained]
    if not curves:
        return
    best = max(gains.max() for gains in curves)
    shares = ", ".join(f"{share:.0%} at {share * best:+.3f}" for share in SHARES)
    whose = ROWS[next(iter(best_of))].title if len(best_of) == 1 else "all curves"
    print(f"\n{decoding}: best gain of {whose} {best:+.3f}; {shares}\n")
    print("| row | seeds | " + " | ".join(f"{cost} to {share:.0%}" for cost in COSTS for share in SHARES) + " |")
    print("|---" * (2 + len(COSTS) * len(SHARES)) + "|")
    for label, found in trained.items():
        cells = [str(len(found))]
        for cost in COSTS:
            costs, gains = curve(found, starts, decoding, cost)
            for share in SHARES:
                spent = cost_to_reach(costs, gains, share * best)
                cells.append("-" if spent is None else shortened(spent))
        print(f"| {ROWS[label].title} | " + " | ".join(cells) + " |")
        if all("back" in point for result in found for point in result.points):
            back, seconds = gone_back(found)
            costs, gains = curve(back, starts, decoding, "processor seconds")
            whole = [seconds_to_reach(costs, seconds, gains, share * best) for share in SHARES]
            cells = ["-" if spent is None else shortened(spent) for spent in whole]
            blank = " |" * (len(COSTS) - 1) * len(SHARES)
            print(f"| the same, gone back, with its seconds | {len(found)} | {' | '.join(cells)} |{blank}")


def print_work(rows: dict[str, list[Result]]) -> None:
    """Print where each row's processor time went, and what its tokens cost."""
    parts = ("generating", "scoring answers")
    print(
        "\n| row | seconds a step | generated tokens a step | ms a generated token | of it generating, scoring, rest |"
    )
    print("|---|---|---|---|---|")
    for label, found in rows.items():
        if label == "start":
            continue
        seconds = np.array([result.points[-1]["processor_seconds"] for result in found])
        steps = np.array([result.points[-1]["steps"] for result in found])
        tokens = np.array([result.points[-1]["tokens"]["generated"] for result in found])
        split = [np.mean([result.head["parts"].get(part, 0.0) for result in found] / seconds) for part in parts]
        shares = [f"{share:.0%}" for share in (*split, 1 - sum(split))] if any(split) else ["not split"]
        cells = [
            f"{np.mean(seconds / steps):.2f}",
            f"{np.mean(tokens / steps):.0f}",
            f"{np.mean(1e3 * seconds / tokens):.3f}",
            ", ".join(shares),
        ]
        print(f"| {ROWS[label].title} | {' | '.join(cells)} |")


def print_variants(variants: dict[str, list[Result]], results: dict[str, list[Result]]) -> None:
    """Print rows with other settings, beside the row itself with the same seeds."""
    for name in ROWS:
        mine = {label: found for label, found in variants.items() if label.partition("+")[0] == name}
        if not mine:
            continue
        print(f"\n{ROWS[name].title}, {' '.join(ROWS[name].options or ROWS[name].overrides)}\n")
        print("| variant | seed | budget | validation greedy | sampled | test greedy | sampled | steps | FLOPs |")
        print("|---|---|---|---|---|---|---|---|---|")
        for label, found in {name: results.get(name, []), **mine}.items():
            for result in found:
                print(variant_line(label, result))


def variant_line(label: str, result: Result) -> str:
    """Return the line of one variant with one seed."""
    validation = result.best["validation"]
    cells = [
        label.partition("+")[2].replace("+", " ") or "as in the table",
        str(result.head["seed"]),
        f"{result.head['budget']:.0f} s",
        f"{validation['greedy']:.3f}",
        f"{validation['sampled']:.3f}",
        f"{result.best['greedy']['mean']:.3f}",
        f"{result.best['sampled']['mean']:.3f}",
        str(result.head["steps"]),
        shortened(forward_flops(result.points[-1]["tokens"])),
    ]
    return "| " + " | ".join(cells) + " |"


def signed(value: Estimate) -> str:
    """Return a gain with its interval."""
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def shortened(value: float) -> str:
    """Return a number in three digits, with k, M, G or T behind it."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
