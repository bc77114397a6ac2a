"""A reward of your own: short answers that are right. Use it as ``examples/custom_reward.py:short_and_right``.

rewards:
  - name: examples/custom_reward.py:short_and_right
    options: {budget: 200}
"""

from collections.abc import Sequence
from typing import Any


def short_and_right(
    completions: Sequence[str], answer: Sequence[Any], budget: int = 200, **_: Any
) -> list[float | None]:
    """Return 1.0 for a right answer within the budget, less the longer it is, 0.0 for a wrong one.

    Args:
        completions: what the model wrote.
        answer: the data's column of that name; None abstains.
        budget: an option: the number of characters that cost nothing. Twice as many cost half the reward.
        **_: columns that this reward does not need.
    """
    rewards: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        if right is None:
            rewards.append(None)
            continue
        words = completion.replace(".", " ").split()
        is_right = bool(words) and words[-1] == str(right)
        rewards.append(min(1.0, budget / max(len(completion), 1)) if is_right else 0.0)
    return rewards


if __name__ == "__main__":
    print(short_and_right(["It is 42.", "It is 41.", "hm " * 200 + "42"], ["42", "42", "42"]))
