"""What is printed when a run is over, and what a dry run prints."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esalign.files import read_json_lines
from esalign.report.changes import Changes, find_changes
from esalign.report.words import (
    SEARCH,
    Words,
    bounds,
    compact,
    count,
    duration,
    judge_gain,
    memory,
    number,
    one_line,
    prompt_text,
    score,
    set_name,
)
from esalign.run.folder import COMPLETIONS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from esalign.run.plan import Plan
    from esalign.run.result import Result
    from esalign.run.verify import Verification

ONE_LINE_WIDTH = 130  # columns from which a mean and its interval fit side by side
LABEL_WIDTH = 12
STYLES = {"better": "bold green", "worse": "bold red", "unclear": "bold", "none": "bold"}
SHOWN_GAINED, SHOWN_LOST, SHOWN_TEXT = 3, 1, 60  # problems, and characters of each of their texts


def show_result(
    console: "Console",
    result: "Result",
    verification: "Verification | None",
    folder: Path,
    *,
    saved: str = "adapter",
    words: Words = SEARCH,
) -> None:
    """Print the start and the result side by side, what the gain means, what it cost, and where everything lies.

    Args:
        console: where to print.
        result: how the run ended.
        verification: how the saved adapter compares with the engine; None when it was not checked.
        folder: the run's directory.
        saved: name of what lies in it as the result: ``adapter`` or ``model``.
        words: what this kind of run calls its things.
    """
    console.print()
    for name, comparison in list(result.comparisons.items())[:1]:  # the first is decoded as the search was
        verdict = judge_gain(comparison.gain, result.generation)
        text = verdict.text if result.generation == 0 else f"{set_name(name)}: {verdict.text}"
        console.print(text, style=STYLES[verdict.kind], markup=False, soft_wrap=True)
    console.print()
    console.print(_comparison_table(result, words, wide=console.width >= ONE_LINE_WIDTH))
    console.print()
    for label, text in _facts(result, words):
        show_fact(console, label, text)
    _show_changes(console, find_changes(read_json_lines(folder / COMPLETIONS)))
    if verification is not None:
        show_fact(console, "check", verification.note, "" if verification.good else STYLES["worse"])
    show_fact(console, saved, str(folder / saved))
    show_fact(console, "report", str(folder / "report.html"))


def _show_changes(console: "Console", changes: Changes | None) -> None:
    """Print how many test problems were gained and lost, and a few of each with the texts before and after."""
    if changes is None:
        return
    show_fact(console, "changes", changes.counts)
    if changes.form:
        show_fact(console, "new form", one_line(changes.form, 500), "yellow")
    for label, group in (("gained", changes.gained[:SHOWN_GAINED]), ("lost", changes.lost[:SHOWN_LOST])):
        for change in group:
            prompt, before, after = (
                one_line(text, SHOWN_TEXT) for text in (prompt_text(change.prompt), change.before, change.after)
            )
            show_fact(
                console,
                label,
                f"{prompt!r}: {before!r} -> {change.reward_before:g}, now {after!r} -> {change.reward_after:g}",
            )


def _comparison_table(result: "Result", words: Words, *, wide: bool) -> "Table":
    """Return a table of the held-out sets: start, result, paired gain, each with its 95 % interval."""
    from rich.text import Text

    heads = ("start", words.result, "gain", "verdict")
    table = make_table("held-out set", heads, "means with 95 % intervals; gains are paired, problem by problem")
    for name, comparison in result.comparisons.items():
        verdict = judge_gain(comparison.gain, result.generation)
        cells = [
            f"{set_name(name)}, {count(comparison.gain.count)} problems",
            score(comparison.start),
            score(comparison.result),
            score(comparison.gain, "+.3f"),
        ]
        if not wide:
            cells = [re.sub(r",? (?=\[|[\d,]+ problems)", "\n", cell) for cell in cells]
        table.add_row(
            *cells,
            Text(verdict.short if wide else verdict.short.replace("clear ", "clear\n"), style=STYLES[verdict.kind]),
        )
    return table


def show_plan(console: "Console", plan: "Plan") -> None:
    """Print what a run would do, as a dry run found by one real batch."""
    training, validation, test = plan.problems
    config, step = plan.config, plan.step
    adapts = config.fitness.name == "reward" and config.fitness.prompts is None
    about = "at least about" if adapts else "about"  # more problems where candidates come near each other
    facts = {
        "search": f"{config.run.generations} generations, {config.describe()}",
        "dimension": f"{count(plan.dim)} singular values are searched",
        "first step": f"sigma {step.sigma:.3g} changes {step.changed:.0%} of greedy completions; {step.broken:.0%} of "
        f"them are empty, cut or repeat themselves, {step.broken_at_start:.0%} at the start",
        "problems": f"{count(training)} to train on, {count(validation)} for validation, {count(test)} for the test",
        "resolution": f"gains below {number(plan.resolution)} on the {count(validation)} validation problems are noise"
        if math.isfinite(plan.resolution)
        else "fewer than two validation problems were judged, which tell no gain from noise"
        + (": set data.validation_size higher" if validation < 2 else ", as the rewards abstained on the others"),
        "tokens": f"{about} {compact(plan.tokens)} generated tokens in all generations",
        "time": f"{about} {duration(plan.seconds)} of search, as one generation took; judgements come on top",
    }
    if plan.reliability is not None:
        facts["signal"] = (
            f"{plan.reliability:.0%} of the variance between these candidates' mean rewards, the rest is luck; "
            "`esalign probe` tells more, at several sigmas"
        )
    if plan.columns:
        taken = ", ".join(f"{name!r} is taken for the {role}" for role, name in plan.columns.items())
        facts["columns"] = f"{taken}; data.columns says otherwise"
    console.print()
    for label, text in facts.items():
        show_fact(console, label, text)
    for note in plan.notes:
        show_fact(console, note.kind, one_line(note.text, 500))
    for concern in plan.concerns:
        show_fact(console, "warning", one_line(concern, 500), "yellow")
    for sample in plan.samples:
        console.print()
        room = max(console.width - LABEL_WIDTH, 40)
        show_fact(console, "problem", one_line(prompt_text(sample.prompt), room))
        show_fact(console, "completion", one_line(sample.completion, 3 * room))
        show_fact(console, "reward", "none (abstained)" if sample.reward is None else f"{sample.reward:g}")
    console.print()


def _forgetting(result: "Result") -> str:
    """Say how far the result is from the start, and what it lost off the task."""
    kl = "not measured" if result.kl is None else f"{number(result.kl, '.4f')} nats per token"
    probe = result.comparisons.get("probe")
    if probe is None:
        return f"KL to the start {kl}; no off-task probe"
    lost = "lost" if probe.gain.high < 0 else "no loss shown"
    return (
        f"KL to the start {kl}; off-task probe {number(probe.gain.mean, '+.3f')} {bounds(probe.gain, '+.3f')}: {lost}"
    )


def _facts(result: "Result", words: Words) -> Sequence[tuple[str, str]]:
    totals: Mapping[str, Any] = result.totals
    tokens, machine = totals.get("tokens", {}), totals.get("machine", {})
    gpu = f", GPU {memory(machine['peak_gpu_mib'])}" if machine.get("peak_gpu_mib") else ""
    speed = count(machine.get("tokens_per_second"))
    work, judgements = (duration(machine.get(f"{kind}_seconds")) for kind in ("search", "held_out"))
    return (
        ("result", f"{words.result_of(result.generation, result.share)} ({result.reason})"),
        ("forgetting", _forgetting(result)),
        (
            "tokens",
            (
                f"{count(tokens.get('generated'))} generated in the {words.work} ({speed} per second), "
                f"{count(tokens.get('held_out'))} in judgements"
            ),
        ),
        ("time", f"{work} of {words.work}, {judgements} of judgements"),
        ("memory", f"{memory(machine.get('peak_rss_mib'))} at its peak{gpu}"),
    )


def make_table(first: str, heads: Sequence[str], caption: str) -> "Table":
    """Return an empty table with its heads; what the columns mean stands below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), caption=Text(caption))
    table.caption_style, table.caption_justify = "", "left"
    table.add_column(Text(first), overflow="fold")
    for head in heads:
        table.add_column(Text(head), overflow="fold", no_wrap="/" not in head)  # paths are folded
    return table


def show_fact(console: "Console", label: str, text: str, style: str = "") -> None:
    """Print one labelled value: indented below itself where it is long on a terminal, on one line elsewhere."""
    from rich.padding import Padding
    from rich.text import Text

    line = Text.assemble((f"{label:<{LABEL_WIDTH}} ", "cyan"), (text, style))
    if not console.is_terminal or line.cell_len <= console.width or " " not in text:  # paths stay whole, to be copied
        console.print(line, soft_wrap=True)
        return
    lines = Text(text, style).wrap(console, max(console.width - LABEL_WIDTH - 1, 20))
    console.print(Text.assemble((f"{label:<{LABEL_WIDTH}} ", "cyan"), lines[0]))
    for rest in lines[1:]:
        console.print(Padding(rest, (0, 0, 0, LABEL_WIDTH + 1)))
