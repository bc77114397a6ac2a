"""What an optimiser can exploit, it will. So rewards see texts that must earn nothing before a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from esalign.rewards.load import is_chat
from esalign.rewards.pool import RewardPool
from esalign.types import Example, Prompt

MOST_PROBLEMS = 8
MOST_ANSWERS = 12  # among which the right one is hidden
REPETITIONS = 1000
SHOWN = 80  # characters of a text
FORMS = ("{}", "The answer is {}.", "\\boxed{{{}}}", "<answer>{}</answer>", "#### {}")
"""What a right answer may have to look like: rewards differ in where they look for it."""


class _Trick(NamedTuple):
    """A text that must earn nothing.

    Args:
        kind: what it is.
        problem: index of the problem that it pretends to solve.
        text: the completion.
    """

    kind: str
    problem: int
    text: str


def audit(pool: RewardPool, examples: Sequence[Example]) -> list[str]:
    """Say what looks wrong when a run's rewards judge right answers and texts that must earn nothing.

    Args:
        pool: the rewards.
        examples: problems, of which the first are taken; those with something under ``answer`` are tried.

    Returns:
        Warnings of one line each: rewards that fail, abstain on all right answers or give none of them anything, and
        those that give a text which must earn nothing as much as a right answer.

    Raises:
        RewardError: a reward breaks its contract, or refuses the data.
    """
    answered = [example for example in examples if example.columns.get("answer") is not None][:MOST_PROBLEMS]
    answers = [str(example.columns["answer"]) for example in answered]
    right = [_Trick(form, i, form.format(answer)) for i, answer in enumerate(answers) for form in FORMS]
    of_right, failures = _score(pool, answered, right)
    tricks = list(_tricks(answered, answers, _liked_forms(right, of_right)))
    of_tricks, more_failures = _score(pool, answered, tricks)
    found = [f"reward {name} on right answers: {message}" for name, message in failures.items()]
    found += [
        f"reward {name} on texts that a model may write, such as none at all: {message}"
        for name, message in more_failures.items()
        if name not in failures
    ]
    for name in pool.names:
        best = _best(right, of_right[name])
        if answered and not best:
            found.append(f"reward {name} abstains on the right answers of all {len(answered)} problems that were tried")
        elif best and max(best.values()) <= 0 and not failures:
            found.append(
                f"reward {name} gives none of {len(best)} right answers, in {len(FORMS)} forms, more than "
                f"{max(best.values()):g}: fine where it wants a certain form, otherwise check it"
            )
        found += _exploits(name, best, tricks, of_tricks[name])
    return found


def _liked_forms(right: Sequence[_Trick], of_right: Mapping[str, Sequence[float | None]]) -> list[str]:
    """Return the form in which right answers earn most, of each reward."""
    liked = []
    for values in of_right.values():
        sums = dict.fromkeys(FORMS, 0.0)
        for text, value in zip(right, values, strict=True):
            sums[text.kind] += value or 0.0
        liked.append(max(sums, key=lambda form: sums[form]))
    return list(dict.fromkeys(liked))


def _tricks(examples: Sequence[Example], answers: Sequence[str], forms: Sequence[str]) -> Iterator[_Trick]:
    """Yield the texts that must earn nothing, for every problem."""
    for i, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        others = [other for other in dict.fromkeys(answers) if other != answer]
        prompt = _text_of(example.prompt)
        yield _Trick("the empty text", i, "")
        if prompt is not None:
            yield _Trick("the repeated prompt", i, prompt)
        yield _Trick("one word a thousand times", i, "so " * REPETITIONS)
        if not others:
            continue
        for form in forms:
            yield _Trick("another problem's answer", i, form.format(others[i % len(others)]))
        hidden = sorted([answer, *(others[i:] + others[:i])[: MOST_ANSWERS - 1]])
        for form in forms:
            yield _Trick("the right answer among others", i, form.format(" or ".join(hidden)))


def _exploits(
    name: str, best: Mapping[int, float], tricks: Sequence[_Trick], values: Sequence[float | None]
) -> list[str]:
    """Say which kinds of tricks earn as much as right answers, with the text that earns most.

    One problem of many may be solved by chance, so a kind must work on two.
    """
    paid: dict[str, list[tuple[float, _Trick]]] = {}
    tried: dict[str, set[int]] = {}
    for trick, value in zip(tricks, values, strict=True):
        if trick.problem not in best or value is None:
            continue
        tried.setdefault(trick.kind, set()).add(trick.problem)
        if value >= best[trick.problem] and (value, best[trick.problem]) != (0.0, 0.0):
            paid.setdefault(trick.kind, []).append((value, trick))
    found = []
    for kind, cases in paid.items():
        problems, among = {trick.problem for _, trick in cases}, len(tried[kind])
        if len(problems) >= min(2, among):
            value, trick = max(cases, key=lambda case: case[0])
            found.append(
                f"reward {name} can be cheated: {kind} earns as much as a right answer on {len(problems)} of {among} "
                f"problems; {_short(trick.text)} earns {value:g}, the right answer {best[trick.problem]:g}"
            )
    return found


def _score(
    pool: RewardPool, examples: Sequence[Example], texts: Sequence[_Trick]
) -> tuple[Mapping[str, list[float | None]], Mapping[str, str]]:
    """Return what each reward gives for texts, None where it abstains, and a message of each kind of failure."""
    scores = pool.score([examples[text.problem] for text in texts], [text.text for text in texts])
    values: dict[str, list[Any]] = {
        name: [scores.components[name][key] for key in range(len(texts))] for name in pool.names
    }
    return values, scores.error_examples


def _best(right: Sequence[_Trick], values: Sequence[float | None]) -> dict[int, float]:
    """Return the most that a right answer earns, in any form, by problem."""
    best: dict[int, float] = {}
    for text, value in zip(right, values, strict=True):
        if value is not None:
            best[text.problem] = max(best.get(text.problem, value), value)
    return best


def _text_of(prompt: Prompt) -> str | None:
    """Return what a prompt asks: its text, or a chat's last message; None for token ids."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if is_chat(prompt) else None  # type: ignore[index]


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
