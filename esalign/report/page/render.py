"""From a run's files to the words, tables and plots of its page."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esalign.config.reading import leaves
from esalign.report.changes import Change
from esalign.report.page.plots import draw_plots
from esalign.report.page.source import RunFiles
from esalign.report.words import (
    as_estimate,
    bounds,
    concerns,
    count,
    duration,
    judge_gain,
    memory,
    number,
    prompt_text,
    score,
    set_name,
    workers,
    worst,
)
from esalign.run.statistics import Estimate

LONGEST_TEXT = 4000  # characters of a prompt or a completion that are shown
SHOWN_GENERATIONS = 8
SHOWN_CHANGES = 20  # of the problems gained, and of those lost

Pairs = list[tuple[str, str]]


def render(files: RunFiles) -> str:
    """Return the page. Everything that a model or a user wrote is escaped, by jinja2's autoescape."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    plots = draw_plots(files.rows, files.comparisons, files.words)
    return environment.get_template("page.html").render(
        title=str((files.config.get("run") or {}).get("name") or files.folder.name),
        words=files.words,
        finished=files.result is not None,
        headline=_headline(files),
        status=_status(files),
        comparisons=_comparison_rows(files),
        plots=[(plot, Markup(_named(plot.svg, f"plot-{i}"))) for i, plot in enumerate(plots, 1)],  # noqa: S704  (our own)
        forgetting=_forgetting(files),
        accounting=_accounting(files),
        concerns=all_concerns(files),
        verification=(files.result or {}).get("verification"),
        notes=[(str(note.get("kind", "")), _clean(str(note.get("text", "")))) for note in files.notes],
        changes=_changes(files),
        completions=_completions(files),
        config=_settings(files.config),
        environment=_settings(files.environment),
    )


def _headline(files: RunFiles) -> Mapping[str, Any]:
    """Return what to remember of the run's test; while it goes on, of its validation so far.

    Under ``numbers`` stand label, mean and interval of each, under ``kind`` the verdict's, under ``text`` one sentence.
    """
    for name, sides in files.comparisons.items():
        verdict = judge_gain(sides["gain"], int((files.result or {}).get("generation") or 0))
        problems = f"{count(sides['gain'].count)} unseen problems ({set_name(name)})"
        start, after, change = sides["start"], sides["result"], sides["gain"]
        numbers = [
            ("start", number(start.mean), bounds(start)),
            (files.words.result, number(after.mean), bounds(after)),
            ("gain", number(change.mean, "+.3f"), bounds(change, "+.3f")),
        ]
        text = f"Mean reward on {problems}. {verdict.text[0].upper()}{verdict.text[1:]}."
        return {"numbers": numbers, "kind": verdict.kind, "text": text}
    scores = [(row["generation"], as_estimate(row["validation"])) for row in files.rows if row.get("validation")]
    known = [(generation, value) for generation, value in scores if value is not None]
    if not known:
        return {"numbers": (), "kind": "", "text": "Nothing was validated yet."}
    generation, best = max(known, key=lambda pair: pair[1].mean)
    start = known[0][1]
    numbers = [
        ("start", number(start.mean), bounds(start)),
        (f"best so far, {files.words.step} {generation}", number(best.mean), bounds(best)),
    ]
    return {"numbers": numbers, "kind": "", "text": f"Mean reward on {count(best.count)} validation problems."}


def _status(files: RunFiles) -> str:
    """Say how far the run is, or how it ended."""
    done = files.rows[-1]["generation"] if files.rows else 0
    step = files.words.step
    planned = (files.config.get("run") or {}).get("generations", "?")
    if files.result is None:
        return (
            f"This run is not finished: {done} of {planned} {step}s are done. Validation scores flatter, as the best "
            f"{step} is chosen by them; the test follows at the end of the run."
        )
    chosen = files.words.result_of(int(files.result.get("generation") or 0), float(files.result.get("share") or 1))
    return f"The best on validation problems was kept: the result is {chosen}. Stopped: {files.result.get('reason')}."


def _comparison_rows(files: RunFiles) -> list[Mapping[str, Any]]:
    """Return the cells of the table of comparisons."""
    generation = int((files.result or {}).get("generation") or 0)
    return [
        {
            "name": set_name(name),
            "count": count(sides["gain"].count),
            "start": score(sides["start"]),
            "result": score(sides["result"]),
            "gain": score(sides["gain"], "+.3f"),
            "verdict": judge_gain(sides["gain"], generation),
        }
        for name, sides in files.comparisons.items()
    ]


def _forgetting(files: RunFiles) -> Pairs:
    """Say how far the result is from the start, and what it lost off the task."""
    if files.result is None:
        return []
    kl = files.result.get("kl")
    pairs = [("KL to the start", "not measured" if kl is None else f"{number(kl, '.4f')} nats per token")]
    probe = files.comparisons.get("probe")
    if probe is None:
        return [*pairs, ("off-task probe", "none; the section probe of the configuration adds one")]
    return [*pairs, ("off-task probe", f"{_change(probe)}; {_loss(probe['gain'])}")]


def _accounting(files: RunFiles) -> Pairs:
    """Return what the run cost: tokens, seconds, memory."""
    last = (files.result or {}).get("totals") or (files.rows[-1] if files.rows else {})
    tokens, machine = last.get("tokens") or {}, last.get("machine") or {}
    work = files.words.work
    pairs = [
        (f"generated tokens, {work}", count(tokens.get("generated"))),
        (f"prompt tokens, {work}", count(tokens.get("prompt"))),
        ("tokens read teacher-forced", count(tokens.get("scored"))),
        ("generated tokens, judgements", count(tokens.get("held_out"))),
        (f"time, {work}", duration(machine.get("search_seconds"))),
        ("time, judgements", duration(machine.get("held_out_seconds"))),
        (f"generated tokens per second of {work}", count(machine.get("tokens_per_second"))),
        ("peak memory", memory(machine.get("peak_rss_mib"))),
    ]
    if machine.get("peak_gpu_mib"):
        pairs.append(("peak GPU memory", memory(machine["peak_gpu_mib"])))
    there = files.rows[-1].get("machine") or {} if files.rows else {}
    if there.get("workers"):
        pairs.append(("cluster", workers(there)))
        pairs.append(("units of work redone, doubled", f"{there.get('redone', 0):g}, {there.get('doubled', 0):g}"))
        pairs.append(("workers lost", f"{there.get('lost', 0):g}"))
        pairs.append(("time that workers waited", duration(there.get("waited"))))
    return pairs


def all_concerns(files: RunFiles) -> list[str]:
    """Return what was worrying: files that cannot be read, and the worst of each kind, with its generations."""
    limit = (files.config.get("sampling") or {}).get("max_tokens")
    when: dict[str, list[int]] = {}
    for row in files.rows:
        for kind in concerns(row, max_tokens=limit):
            when.setdefault(kind, []).append(row["generation"])
    texts = concerns(worst(files.rows), max_tokens=limit)
    return [*files.broken, *(f"{text} ({_spread(when[kind], files.words.step)})" for kind, text in texts.items())]


def _changes(files: RunFiles) -> Mapping[str, Any] | None:
    """Return what became of the test problems: counts, form, and the texts of those gained and lost."""
    found = files.changes
    if files.result is None or found is None:
        return None
    groups = (("gained, the most rewarded first", found.gained), ("lost, the greatest loss first", found.lost))
    return {
        "counts": found.counts,
        "form": found.form,
        "groups": [(name, len(group), [_change_of(one) for one in group[:SHOWN_CHANGES]]) for name, group in groups],
    }


def _completions(files: RunFiles) -> list[tuple[str, list[Mapping[str, str]]]]:
    """Return completions to read: the result's own, the start's, and some between, newest first."""
    groups: dict[int, list[Mapping[str, str]]] = {}
    for sample in files.samples:
        groups.setdefault(int(sample.get("generation") or 0), []).append(_answer(sample))
    chosen = _evenly(sorted(groups, reverse=True), SHOWN_GENERATIONS)
    shown = [("the start" if number == 0 else f"{files.words.step} {number}", groups[number]) for number in chosen]
    of_result = [_answer(sample) for sample in (files.result or {}).get("samples") or []]
    return [("the result, on test problems", of_result), *shown] if of_result else shown


def _settings(values: Mapping[str, Any]) -> Pairs:
    """Return ('run.seed', '0') and the like of nested mappings."""
    return [(key, "none" if value is None else _clean(str(value))) for key, value in leaves(values).items()]


def _clean(text: str) -> str:
    """Return text that a page can hold: control characters become a visible mark."""
    kept = "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else "\ufffd" for char in text
    )
    return kept if len(kept) <= LONGEST_TEXT else f"{kept[:LONGEST_TEXT]} … ({count(len(kept) - LONGEST_TEXT)} more)"


def _named(svg: str, name: str) -> str:
    """Return a drawing whose ids are its own on a page of several, and that is named by the title of that id."""
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}"', 1)


def _answer(sample: Mapping[str, Any]) -> Mapping[str, str]:
    reward = sample.get("reward")
    return {
        "prompt": _clean(prompt_text(sample.get("prompt", ""))),
        "start": _clean(str(sample.get("start") or "")),
        "completion": _clean(str(sample.get("completion", ""))),
        "reward": "none (abstained)" if reward is None else f"{reward:g}",
    }


def _change_of(change: Change) -> Mapping[str, str]:
    return {
        "prompt": _clean(prompt_text(change.prompt)),
        "before": _clean(change.before),
        "after": _clean(change.after),
        "reward_before": f"{change.reward_before:g}",
        "reward_after": f"{change.reward_after:g}",
    }


def _change(sides: Mapping[str, Estimate]) -> str:
    return f"{number(sides['start'].mean)} → {number(sides['result'].mean)}, {score(sides['gain'], '+.3f')}"


def _loss(change: Estimate) -> str:
    if change.high < 0:
        return "a loss: the interval excludes zero"
    return "no loss shown: the interval includes zero" if change.low <= 0 else "no loss, but a gain"


def _evenly(values: Sequence[int], most: int) -> list[int]:
    """Return at most so many values, first and last among them, evenly spread."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _spread(steps: Sequence[int], step: str) -> str:
    """Return 'generation 7', 'generations 7, 19' or '12 generations from 3 to 40'."""
    if len(steps) <= 6:
        return f"{step}{'s' if len(steps) > 1 else ''} " + ", ".join(str(number) for number in steps)
    return f"{len(steps)} {step}s from {steps[0]} to {steps[-1]}"
