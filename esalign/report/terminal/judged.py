"""What `esalign eval` prints: the models side by side, several samples of each problem, a column's values."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esalign.fitness.completions import add_errors
from esalign.report.terminal.tables import ONE_LINE_WIDTH, STYLES, make_table, show_fact
from esalign.report.words import concerns, count, duration, judge_gain, number, one_line, score
from esalign.run.instructions import MODES
from esalign.run.judged import Judged, group_by
from esalign.run.statistics import estimate, paired_difference
from esalign.types import Array

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

KINDS = "instruction_id_list"  # the column of IFEval's instructions
MOST_GROUPS = 40  # values of a column that are shown
MUCH_LONGER = 1.25  # or shorter: ratio of lengths from which the user is told


def show_judged(console: "Console", judged: Sequence[Judged], *, by: Sequence[str], max_tokens: int) -> None:
    """Print tables of models that were judged on the same problems, what each cost, and what is worrying.

    Args:
        console: where to print.
        judged: at least one, the start first.
        by: columns of the problems for tables of their own.
        max_tokens: the limit of a completion's length.
    """
    wide = console.width >= ONE_LINE_WIDTH
    console.print()
    console.print(_main_table(judged, wide=wide))
    if judged[0].samples > 1:
        console.print()
        console.print(_samples_table(judged, wide=wide))
    if judged[0].instructions is not None:
        console.print()
        console.print(_instructions_table(judged, wide=wide))
    for column in by:
        console.print()
        console.print(_column_table(judged, column, wide=wide))
    console.print()
    for one in judged:
        tokens, speed = one.completed.generated_tokens, one.completed.generated_tokens / max(one.seconds, 1e-9)
        show_fact(
            console,
            "cost",
            f"{one.name}: {count(tokens)} tokens generated in {duration(one.seconds)} ({count(speed)} per second), "
            f"engine loaded and checked in {duration(one.load_seconds)}",
        )
    for one in judged:
        if one.note:
            show_fact(console, "note", f"{one.name}: {one.note}")
        for text in _concerns(one, judged[0], max_tokens):
            show_fact(console, "warning", one_line(f"{one.name}: {text}", 500), "yellow")


def _main_table(judged: Sequence[Judged], *, wide: bool) -> "Table":
    from rich.text import Text

    start, several = judged[0], len(judged) > 1
    caption = [f"{count(len(start.examples))} problems" + (f", {start.samples} samples of each" * (start.samples > 1))]
    caption.append("means with 95 % intervals by problem")
    if several:
        caption.append("gain, gained and lost are against the start, problem by problem")
    caption.append("tokens are those of a completion")
    heads = ["mean reward", *(["gain", "gained\n/ lost"] if several else []), "tokens", "cut"]
    table = make_table("model", heads, "; ".join(caption))
    for one in judged:
        table.add_row(Text(one.name), *(_cell(*cell, wide=wide) for cell in _main_cells(one, start, compared=several)))
    return table


def _main_cells(one: Judged, start: Judged, *, compared: bool) -> Iterator[tuple[str, str]]:
    """Yield the cells of a model as (text, style)."""
    yield score(estimate(one.scores)), ""
    if compared and one is start:
        yield from (("", ""), ("", ""))
    elif compared:
        against = one.against(start)
        yield score(against.gain, "+.3f"), STYLES[judge_gain(against.gain, 1).kind]
        yield f"{against.gained} / {against.lost}", ""
    mean, median = (number(float(found), ",.0f") for found in (one.lengths.mean(), np.median(one.lengths)))
    yield f"{mean} mean, {median} median", ""
    yield f"{one.completed.truncated:.1%}", ""


def _samples_table(judged: Sequence[Judged], *, wide: bool) -> "Table":
    from rich.text import Text

    samples = judged[0].samples
    sizes = sorted({*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples})
    binary = all(one.is_binary for one in judged)
    meaning = (
        "pass@k: a right one among k samples, estimated without bias (Chen et al. 2021)"
        if binary
        else "best of k: the expected best reward of k samples"
    )
    table = make_table(
        "model",
        [*(f"{'pass@' if binary else 'best of '}{k}" for k in sizes), f"majority of {samples}"],
        f"{meaning}; majority: the reward of the most frequent answer",
    )
    for one in judged:
        cells = [*(one.best_of(k) for k in sizes), one.majority()]
        table.add_row(Text(one.name), *(_cell(score(cell), wide=wide) for cell in cells))
    return table


def _instructions_table(judged: Sequence[Judged], *, wide: bool) -> "Table":
    """Return the four numbers that IFEval reports."""
    from rich.text import Text

    heads = [f"{unit}\n{mode}" for unit in ("prompt", "instruction") for mode in MODES]
    table = make_table("model", heads, "IFEval: share of prompts with all instructions followed, and of instructions")
    for one in judged:
        if (found := one.instructions) is not None:
            cells = [*(found.by_prompt(mode) for mode in MODES), *(found.by_instruction(mode) for mode in MODES)]
            table.add_row(Text(one.name), *(_cell(score(cell), wide=wide) for cell in cells))
    return table


def _scores_of_kind(one: Judged, kind: str) -> Array:
    if one.instructions is None:
        raise ValueError(f"the instructions of {one.name!r} were not judged")
    return one.instructions.scores("strict", kind)


def _groups(judged: Sequence[Judged], column: str) -> tuple[str, dict[Any, int], Callable[[Judged, Any], Array]]:
    """Return what a column's table counts: what, how many with each value, and scores of a model by problem."""
    start = judged[0]
    if column == KINDS and (found := start.instructions) is not None:
        return "instructions", found.count(), _scores_of_kind
    groups = group_by(start.examples, column)
    return (
        "problems",
        {value: len(numbers) for value, numbers in groups.items()},
        lambda one, value: one.scores[groups[value]],
    )


def _column_table(judged: Sequence[Judged], column: str, *, wide: bool) -> "Table":
    from rich.text import Text

    start, *others = judged
    what, counts, scores = _groups(judged, column)
    frequent = set(sorted(counts, key=lambda value: counts[value], reverse=True)[:MOST_GROUPS])
    caption = {
        "problems": "mean reward of the problems with this value; a problem with several counts for each",
        "instructions": "share of the instructions of this kind that are followed, strictly, each judged by itself",
    }[what]
    if len(counts) > len(frequent):
        caption += f"; {len(counts) - len(frequent)} rarer values are not shown"
    table = make_table(column, [what, start.name, *(head for one in others for head in (one.name, "gain"))], caption)
    for value, number_of in counts.items():
        if value in frequent:
            before = scores(start, value)
            cells = [count(number_of), score(estimate(before))]
            for one in others:
                after = scores(one, value)
                cells += [score(estimate(after)), score(paired_difference(after, before), "+.3f")]
            label = "none" if value is None else one_line(str(value), 60)
            table.add_row(Text(label), *(_cell(cell, wide=wide) for cell in cells))
    return table


def _concerns(one: Judged, start: Judged, max_tokens: int) -> Iterator[str]:
    rewards = one.rewards
    row = {"truncated": one.completed.truncated, "abstained": float(np.isnan(rewards).mean())}
    yield from concerns(
        add_errors(row, one.completed.errors, one.completed.error_examples), max_tokens=max_tokens
    ).values()
    if one is start:
        return
    longer, before = one.against(start).longer, float(start.lengths.mean())
    after = before + longer.mean
    clear = longer.low > 0 or longer.high < 0
    if clear and before > 0 and not 1 / MUCH_LONGER < after / before < MUCH_LONGER:
        yield (
            f"completions are {after / before:.2g} times as long as the start's, {number(after, ',.0f')} tokens "
            f"instead of {number(before, ',.0f')}: does the reward go by length?"
        )


def _cell(text: str, style: str = "", *, wide: bool) -> "Text":
    """Return a cell, in two lines where the terminal is narrow: before an interval, or behind a comma."""
    from rich.text import Text

    mark = r" (?=\[)" if "[" in text else r"(?<=,) "
    return Text(text if wide else re.sub(mark, "\n", text), style)
