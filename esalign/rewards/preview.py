"""A look at rewards before a run: what they give for right answers, and for real completions."""

from collections.abc import Sequence
from dataclasses import dataclass

from esalign.rewards.judge import Item, Outcome, judge
from esalign.rewards.load import Reward
from esalign.types import Example


@dataclass(frozen=True)
class Preview:
    """What a reward gives on a few problems.

    Args:
        right: the outcome of each problem's own answer given as the completion, where it has one.
        completions: the outcome of each completion.
    """

    right: tuple[Outcome, ...]
    completions: tuple[Outcome, ...]

    @property
    def concerns(self) -> tuple[str, ...]:
        """What looks wrong, in words; empty when nothing does."""
        found = []
        for name, outcomes in (("right answers", self.right), ("completions", self.completions)):
            failed = [outcome for outcome in outcomes if outcome.failure]
            if failed:
                found.append(f"the reward failed on {len(failed)} of {len(outcomes)} {name}: {failed[0].message}")
            elif outcomes and all(outcome.value is None for outcome in outcomes):
                found.append(f"the reward abstained on all {len(outcomes)} {name}")
        values = [outcome.value for outcome in self.right if outcome.value is not None]
        if values and max(values) <= 0:
            found.append(f"the reward gave none of the {len(values)} right answers more than {max(values):g}")
        return tuple(found)


def preview(reward: Reward, examples: Sequence[Example], completions: Sequence[str] = ()) -> Preview:
    """Score the right answers of a few problems, and completions to them, in this process.

    Args:
        reward: the reward.
        examples: problems; those with a text under ``answer`` are tried with it as the completion.
        completions: completions to the first of the examples, one each; may be fewer.

    Raises:
        RewardError: the reward breaks its contract, or lacks a column.
    """
    right = [
        judge(reward, Item(example.prompt, example.columns, str(example.columns["answer"])))
        for example in examples
        if example.columns.get("answer") is not None
    ]
    given = [
        judge(reward, Item(example.prompt, example.columns, completion))
        for example, completion in zip(examples, completions, strict=False)
    ]
    return Preview(tuple(right), tuple(given))
