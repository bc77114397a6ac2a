"""How numbers and findings are said: the same words on the terminal, in logs and in the report."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from esalign.fitness.completions import ERROR_EXAMPLES, ERRORS
from esalign.run.first_step import FirstStep
from esalign.run.statistics import Estimate

MISSING = "n/a"
HIGH_TRUNCATION = 0.2  # share of cut completions above which the limit decides more than the model
HIGH_ABSTENTION = 0.5


@dataclass(frozen=True)
class Verdict:
    """What a gain means: ``better``, ``worse``, ``unclear`` or ``none`` (the start is the result), and in words."""

    kind: Literal["better", "worse", "unclear", "none"]
    text: str

    @property
    def short(self) -> str:
        """The verdict in a table's cell."""
        return {"better": "better", "worse": "worse", "unclear": "no clear difference", "none": "the start"}[self.kind]


def judge_gain(gain: Estimate, generation: int) -> Verdict:
    """Say what a paired gain over the start means.

    Args:
        gain: result - start on the same problems.
        generation: the generation that the result is of; 0 is the start itself.
    """
    if generation == 0:
        return Verdict(
            "none",
            "no improvement found: nothing beat the start on the validation problems by more than the noise, so the "
            "result is the start",
        )
    if gain.low > 0:
        return Verdict("better", "better: the gain's 95 % interval excludes zero")
    if gain.high < 0:
        return Verdict("worse", "worse: the loss's 95 % interval excludes zero")
    if math.isnan(gain.mean):
        return Verdict("unclear", "cannot be judged: no problem was scored both times")
    return Verdict("unclear", "no clear difference: the gain's 95 % interval includes zero")


@dataclass(frozen=True)
class Words:
    """What a kind of run calls its things.

    Args:
        step: one step.
        work: all steps.
        learner: what improves.
        result: the best of it, as the head of a column.
        measure: what chooses the best.
    """

    step: str
    work: str
    learner: str
    result: str
    measure: str = "mean reward"

    def result_of(self, generation: int, share: float = 1.0) -> str:
        """Say what the result of a run is."""
        if generation == 0:
            return "the start itself"
        back = "" if share == 1 else f", at {share:g} of its way from the start for the sake of sampled completions"
        return f"the {self.learner} after {self.step} {generation}{back}"


SEARCH = Words("generation", "search", "mean of the search distribution", "aligned")
DISTILLATION = Words("update", "training", "student", "student")
WORDS = {"search": SEARCH, "distillation": DISTILLATION}


def as_estimate(value: Mapping[str, Any] | None) -> Estimate | None:
    """Return the estimate that a metrics row or ``result.json`` holds; null is read as NaN."""
    if value is None:
        return None
    numbers = [math.nan if value.get(key) is None else float(value[key]) for key in ("mean", "low", "high")]
    return Estimate(numbers[0], numbers[1], numbers[2], int(value.get("count") or 0))


def number(value: float | None, spec: str = ".3f") -> str:
    """Return '0.412', or 'n/a' for what is missing or not finite; what rounds to zero has no minus.

    >>> number(-0.0004), number(-0.0004, "+.3f"), number(None)
    ('0.000', '+0.000', 'n/a')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    text = format(value, spec)
    return text if text.strip("-0.") else format(0.0, spec)


def score(value: Estimate | None, spec: str = ".3f") -> str:
    """Return '0.412 [0.381, 0.443]'."""
    return MISSING if value is None else f"{number(value.mean, spec)} {bounds(value, spec)}"


def bounds(value: Estimate, spec: str = ".3f") -> str:
    """Return '[0.381, 0.443]'."""
    return f"[{number(value.low, spec)}, {number(value.high, spec)}]"


def duration(seconds: float | None) -> str:
    """Return '0.8 s', '42 s', '4 min 10 s' or '2 h 05 min'."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(value: float | None) -> str:
    """Return '1,240,512'."""
    return number(value, ",.0f")


def compact(value: float | None) -> str:
    """Return '9,120', '152 k', '1.24 M' or '3.08 G'."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= max(size * 0.9995, 1e4):
            return f"{value / size:.3g} {unit}"
    return count(value)


def memory(mib: float | None) -> str:
    """Return '812 MiB' or '3.4 GiB'."""
    if mib is None or not math.isfinite(mib):
        return MISSING
    return f"{mib:,.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


OF_KIND = "workers_of_"  # how the metrics name the workers of a kind


def workers(machine: Mapping[str, Any]) -> str:
    """Name the workers of a cluster, by their kinds where there are several.

    >>> workers({"workers": 3, "workers_of_h100": 2, "workers_of_llama-cpp": 1, "worker_tokens_per_second": 5210.0})
    '3 workers (2 h100, 1 llama-cpp), 5,210 tokens/s while they work'
    """
    kinds = [f"{value:g} {key.removeprefix(OF_KIND)}" for key, value in machine.items() if key.startswith(OF_KIND)]
    named = f" ({', '.join(kinds)})" if kinds else ""
    speed = count(machine.get("worker_tokens_per_second"))
    return f"{machine['workers']:g} workers{named}, {speed} tokens/s while they work"


def set_name(name: str) -> str:
    """Return the name of a held-out set or a measure for people: 'minus reverse KL' for ``minus-reverse-kl``."""
    return {"probe": "off-task probe"}.get(name, name.replace("-", " ").replace(" kl", " KL").replace("/", ", "))


def prompt_text(prompt: Any) -> str:
    """Return a prompt of any kind as text: chat messages with their roles, token ids as numbers."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and prompt and all(isinstance(part, Mapping) for part in prompt):
        told = [(part.get("role", ""), part.get("content") or part.get("tool_calls", "")) for part in prompt]
        return "\n".join(f"{role}: {content}" for role, content in told)
    if isinstance(prompt, Sequence):
        return f"{len(prompt)} token ids: " + " ".join(str(part) for part in prompt)
    return str(prompt)


def one_line(text: str, width: int, *, head: float = 0.5) -> str:
    """Return text that is safe to print, on one line of at most width characters; the middle is left out.

    Models may write escape sequences; every control and formatting character becomes a space.

    Args:
        text: what somebody wrote.
        width: at least 10.
        head: share of the line for the beginning, in [0, 1]; the end has the rest.
    """
    clean = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    line = " ".join(clean.split())
    if len(line) <= width:
        return line
    first = round((width - 3) * head)
    return f"{line[:first]} … {line[len(line) - (width - 3 - first) :]}"


def concerns(row: Mapping[str, Any], *, max_tokens: int | None) -> dict[str, str]:
    """Say what in a generation's metrics should worry the user, by kind of worry.

    Args:
        row: a line of ``metrics.jsonl``, or what `worst` makes of many.
        max_tokens: the limit of a completion's length, named in the advice.
    """
    found = {key: _failures(row, key) for key, value in row.items() if key.startswith(ERRORS) and value}
    if (row.get("truncated") or 0) >= HIGH_TRUNCATION:
        limit = f" of {max_tokens} tokens" if max_tokens else ""
        found["truncated"] = (
            f"{row['truncated']:.0%} of completions were cut at the limit{limit}: raise sampling.max_tokens?"
        )
    if (row.get("abstained") or 0) >= HIGH_ABSTENTION:
        found["abstained"] = f"the rewards abstained on {row['abstained']:.0%} of completions: do they fit the data?"
    if (row.get("fitness") or {}).get("std") == 0:
        found["flat"] = "all candidates have the same fitness, so nothing can be learned from this generation"
    return found


def concerns_of_step(step: FirstStep, proposed: float | None) -> tuple[str, ...]:
    """Say whether the first step of a search is too small or too large, and which one is not."""
    if not (step.too_small or step.too_large):
        return ()
    instead = f"; try optimizer.sigma={proposed:.2g}" if proposed is not None else ""
    if step.too_small:
        return (f"the first candidates hardly differ from the start, so nothing tells them apart{instead}",)
    return (f"the first candidates break what the start can do{instead}",)


def _failures(row: Mapping[str, Any], key: str) -> str:
    """Say how many scorings failed, and what one of them said."""
    name = key.removeprefix(ERRORS)
    example = (row.get(ERROR_EXAMPLES) or {}).get(name)
    return f"{count(row[key])} completions could not be scored ({name})" + (f": {example}" if example else "")


def sum_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scorings that failed in many rows, as one row has them: their numbers, and a message of each kind."""
    errors: dict[str, Any] = {ERROR_EXAMPLES: {}}
    for row in rows:
        for key, value in row.items():
            if key.startswith(ERRORS):
                errors[key] = errors.get(key, 0.0) + (value or 0.0)
        errors[ERROR_EXAMPLES] = {**(row.get(ERROR_EXAMPLES) or {}), **errors[ERROR_EXAMPLES]}
    return errors


def worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row that stands for many: errors summed, and the worst of everything else that `concerns` reads."""
    shares = {key: max((row.get(key) or 0.0 for row in rows), default=0.0) for key in ("truncated", "abstained")}
    spreads = [row["fitness"].get("std") for row in rows if row.get("fitness")]
    return {**sum_errors(rows), **shares, "fitness": {"std": 0.0 if 0.0 in spreads else None}}
