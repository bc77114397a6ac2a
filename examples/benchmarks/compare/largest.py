"""A task that has to be learnt: which of four numbers is the largest.

The embedded model never saw the question. A warm start teaches it the form alone: its demonstrators name any of the
four. So no style of the base model is the answer; only the rewards tell which number is meant.
"""

from pathlib import Path
from random import Random

from esalign import Example
from esalign.assets import asset
from esalign.sft import SftOptions, train_sft

DEMONSTRATIONS, PROBLEMS = 1000, 3600


def pose(seed: int) -> list[dict[str, str]]:
    """Return problems, all different, as rows of a data set."""
    rng = Random(seed)
    asked = dict.fromkeys(tuple(rng.sample(range(1, 100), 4)) for _ in range(PROBLEMS))
    return [{"question": _question(numbers), "answer": str(max(numbers))} for numbers in asked]


def train_adapter(out: Path) -> None:
    """Train the warm start, as `examples/embedded_model/train_adapter.py` trains the shipped one; half a minute."""
    rng = Random(11)
    shown = [rng.sample(range(1, 100), 4) for _ in range(DEMONSTRATIONS)]
    examples = [Example(_question(numbers), {"answer": str(rng.choice(numbers))}) for numbers in shown]
    options = SftOptions(rank=8, alpha=16, learning_rate=5e-3, epochs=6, max_length=128, seed=0, device="cpu")
    train_sft(asset("embedded/model"), examples, completion_column="answer", out=out, options=options)


def _question(numbers: tuple[int, ...] | list[int]) -> str:
    return f"Largest of {', '.join(map(str, numbers))}:"
