"""reasoning-gym's own verifiers as a reward."""

import ast
import keyword
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

PRELOAD = ("esalign.rewards.verifiers",)
"""Imported once, before the scoring processes are forked: it takes seconds."""

_PLAIN = re.compile(r"[0-9+\-*/()= ]{1,200}")
_TAGGED = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)
_NEIGHBOURS = re.compile(r"(\w+) +(?=(\w+))")
_LEFT_TO_SYMPY = re.compile(r"//|/ +/|\* +\*|= *=|\d{16}|[-+*/]=")
MAX_BITS = 10_000
"""Size of the largest power that a completion of Countdown may hold."""


def reasoning_gym_reward(
    completions: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    question: Sequence[str] | None = None,
    answer: Sequence[Any] | None = None,
    *,
    full_marks_only: bool = False,
) -> list[float]:
    """Return the score that the task's own verifier gives, in [0, 1].

    The model's solution is what stands in the last ``<answer>`` tags, or the whole completion without them.

    Args:
        completions: what the model wrote.
        metadata: of the problems, as reasoning-gym gave it; it names the task.
        question: the problems as posed.
        answer: reasoning-gym's own solutions.
        full_marks_only: 1.0 for a perfect score and 0.0 for anything less. Most verifiers give something for a text
            of the right form; without this option, that is rewarded too.

    Raises:
        ValueError: metadata that names no task.
    """
    count = len(completions)
    questions, answers = question or [""] * count, answer or [None] * count
    scores = []
    for text, posed, right, details in zip(completions, questions, answers, metadata, strict=True):
        entry = {"question": posed, "answer": right, "metadata": details}
        score = score_entry(extract_solution(text), entry)
        scores.append(float(score >= 1.0) if full_marks_only else score)
    return scores


def extract_solution(completion: str) -> str:
    """Return what stands in the last ``<answer>`` tags, or the whole completion, stripped.

    The pattern is that of ``reasoning_gym.utils.extract_answer``, whose import takes seconds.
    """
    tagged = _TAGGED.findall(completion)
    return (tagged[-1] if tagged else completion).strip()


def score_entry(solution: str, entry: Mapping[str, Any]) -> float:
    """Return the score of a solution to one of reasoning-gym's entries."""
    task = entry["metadata"].get("source_dataset")
    if not task:
        raise ValueError(f"metadata names no reasoning-gym task as 'source_dataset', it has {list(entry['metadata'])}")
    if task == "countdown":
        score = _score_countdown(solution, entry["metadata"])
        if score is not None:
            return score
    from esalign.rewards.verifiers import find_verifier

    return float(find_verifier(task)(solution, entry))


def _score_countdown(solution: str, metadata: Mapping[str, Any]) -> float | None:
    """Score plain arithmetic and prose as reasoning-gym's verifier does, but ten times as fast; None leaves it to that.

    The verifier evaluates the solution with sympy, where a small model's ``9**9**9`` hangs. Here a power beyond
    `MAX_BITS` is a number that misses the target.
    """
    if _is_prose(solution):
        return 0.01
    if not _PLAIN.fullmatch(solution) or _LEFT_TO_SYMPY.search(solution):
        return None
    numbers = [int(digits) for digits in re.findall(r"\d+", solution)]
    try:
        value = float(_evaluate(ast.parse(solution, mode="eval").body))
    except (SyntaxError, TypeError):
        return 0.01
    except OverflowError:
        return 0.05
    except (ZeroDivisionError, RecursionError, MemoryError, NotImplementedError):
        return None
    target = float(metadata["target"])
    right = sorted(numbers) == sorted(metadata["numbers"]) and abs(value - target) <= 1e-6 + 1e-5 * abs(target)
    return 1.0 if right else 0.05


def _is_prose(text: str) -> bool:
    """Say whether two words stand side by side, so that a text is no expression; a few other texts are none either.

    >>> _is_prose("the sum of 2 and 3"), _is_prose("2 + x"), _is_prose("x and y")
    (True, False, False)
    """
    words = _NEIGHBOURS.findall(text)
    quoted = any(mark in text for mark in "\"'#")
    return not quoted and any(not keyword.iskeyword(one) and not keyword.iskeyword(other) for one, other in words)


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.operand))
    raise TypeError(f"{type(node).__name__} is no plain arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise NotImplementedError("roots are left to sympy")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and bits * abs(exponent.numerator) > MAX_BITS:
        raise OverflowError
    return base ** int(exponent)


_OPERATORS: Mapping[type, Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
