"""Problems that are generated for the reward `ifeval`: a topic, and instructions whose following code can check."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esalign.data import instruction_words as words
from esalign.data.rows import Row
from esalign.errors import DataError
from esalign.registry import did_you_mean
from esalign.seeds import Use, generator

NAME = "instructions"

_DEFAULTS: Mapping[str, Any] = {"min_instructions": 1, "max_instructions": 3, "kinds": tuple(words.KINDS)}
_REPEAT = "combination:repeat_prompt"
_TRIES = 200
_LAYOUTS = ("{task} {rules}", "{task} {rules}", "{task}\n\n{lines}", "{task}\n{rules}", "{rules} {task}")


def generate_instructions(*, options: Mapping[str, Any], size: int, seed: int, start: int = 0) -> list[Row]:
    """Return a range of the endless series of problems that a seed defines.

    Args:
        options: ``min_instructions`` (1) and ``max_instructions`` (3) of a problem, and ``kinds``, the names of those
            to draw from (all 25).
        size: number of problems.
        seed: decides the series.
        start: index of the first problem.

    Returns:
        Rows with the columns prompt, instruction_id_list and kwargs, as ``google/IFEval`` has them.

    Raises:
        DataError: an unknown option or kind, or numbers that do not fit each other or the kinds.
    """
    least, most, kinds = _read_options(options)
    return [_pose(generator(seed, Use.TASKS, index), least, most, kinds) for index in range(start, start + size)]


def _read_options(options: Mapping[str, Any]) -> tuple[int, int, tuple[str, ...]]:
    for name in options:
        if name not in _DEFAULTS:
            hint = did_you_mean(name, _DEFAULTS)
            raise DataError(f"'{NAME}' has no option {name!r}{hint}; options: {', '.join(_DEFAULTS)}")
    least, most, kinds = ({**_DEFAULTS, **options}[name] for name in _DEFAULTS)
    if not (type(least) is int and type(most) is int and 1 <= least <= most <= len(words.KINDS)):
        raise DataError(
            f"'{NAME}' has min_instructions {least!r} and max_instructions {most!r}, expected 1 <= min <= max"
        )
    if not isinstance(kinds, list | tuple) or not kinds:
        raise DataError(f"'{NAME}' has the kinds {kinds!r}, expected a list of names such as 'punctuation:no_comma'")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in words.KINDS:
            raise DataError(f"'{NAME}' has no kind {kind!r}{did_you_mean(str(kind), words.KINDS)}")
    return least, most, tuple(kinds)


def _pose(rng: np.random.Generator, least: int, most: int, kinds: Sequence[str]) -> Row:
    chosen = _choose(rng, least, most, kinds)
    questions = words.QUESTIONS if "detectable_format:constrained_response" in chosen else words.TASKS
    task = _draw(rng, questions).format(subject=_draw(rng, words.SUBJECTS))
    task = task if task.endswith("?") else f"{task}."
    kwargs = {kind: _parameters(rng, kind) for kind in chosen if kind != _REPEAT}
    rules = [_word(rng, kind, parameters) for kind, parameters in kwargs.items()]
    text = _draw(rng, _LAYOUTS) if rules else "{task}"
    prompt = text.format(task=task, rules=" ".join(rules), lines="\n".join(f"- {rule}" for rule in rules))
    if _REPEAT in chosen:
        kwargs[_REPEAT] = {"prompt_to_repeat": prompt}
        prompt = f"{prompt}\n\n{_draw(rng, words.KINDS[_REPEAT].wordings)}"
    return {"prompt": prompt, "instruction_id_list": list(kwargs), "kwargs": list(kwargs.values())}


def _choose(rng: np.random.Generator, least: int, most: int, kinds: Sequence[str]) -> list[str]:
    """Draw kinds that can stand in one prompt."""
    for _ in range(_TRIES):
        chosen: list[str] = []
        wanted = int(rng.integers(least, most + 1))
        while len(chosen) < wanted and (
            left := [kind for kind in kinds if not any(words.conflict(kind, other) for other in chosen)]
        ):
            chosen.append(_draw(rng, left))
        if len(chosen) >= least:
            return chosen
    raise DataError(
        f"'{NAME}' finds no {least} of the kinds {', '.join(kinds)} that go together: ask for fewer, or add kinds"
    )


def _parameters(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for name, choices in words.KINDS[kind].parameters.items():
        if name in ("keywords", "forbidden_words"):
            drawn[name] = [choices[index] for index in rng.choice(len(choices), rng.integers(1, 4), replace=False)]
        else:
            drawn[name] = _draw(rng, choices)
    return drawn


def _word(rng: np.random.Generator, kind: str, parameters: Mapping[str, Any]) -> str:
    shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in parameters.items()}
    if "language" in shown:
        shown["language"] = words.LANGUAGES[shown["language"]]
    return _draw(rng, words.KINDS[kind].wordings).format(**shown)


def _draw(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]
