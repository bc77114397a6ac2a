"""Which of two numbers is larger: problems, and the reward that judges completions.

    python larger.py > larger.jsonl

A model that names either number at random is right half of the time, and so is one that always names the first, or the
second: what is above one half is comparing.
"""

import json
import random
import re
import sys
from typing import Any

PROBLEMS = 1500


def write(out: Any, seed: int = 0) -> None:
    """Write problems as lines of JSON, all different."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if a != b]
    for a, b in rng.sample(pairs, PROBLEMS):
        print(json.dumps({"prompt": f"{a} {b}", "answer": str(max(a, b))}), file=out)


def names_the_larger(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Give 1 where the first number of a completion is the larger one, so that repeating the question earns a half."""
    firsts = [re.search(r"\d+", completion) for completion in completions]
    return [float(first is not None and first[0] == right) for first, right in zip(firsts, answer, strict=True)]


if __name__ == "__main__":
    write(sys.stdout)
