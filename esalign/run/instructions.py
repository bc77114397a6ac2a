"""Which of its prompt's instructions each completion follows: IFEval's four official numbers, and a table by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from esalign.run.statistics import Estimate, estimate
from esalign.types import Array, Example

Mode: TypeAlias = Literal["strict", "loose"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Instructions:
    """Verdicts on instructions, each by itself.

    Args:
        kinds: of each problem, the kinds of its instructions; none where it has none.
        follows: by mode, of each problem, whether its completions follow them, shape (samples, instructions).
    """

    kinds: Sequence[Sequence[str]]
    follows: Mapping[Mode, Sequence[Array]]

    def by_prompt(self, mode: Mode) -> Estimate:
        """Return the share of completions that follow all instructions of their prompt."""
        return estimate([float(one.all(axis=1).mean()) for one in self.follows[mode] if one.size])

    def by_instruction(self, mode: Mode) -> Estimate:
        """Return the share of instructions that are followed; the interval is by problem."""
        return estimate(self.scores(mode))

    def scores(self, mode: Mode, kind: str | None = None) -> Array:
        """Return numbers of problems whose mean is the share of instructions that are followed, shape (problems,).

        A problem with n of N instructions, the mean being N / problems, of which f are followed, has
        ``p + (f - p n) problems / N``: the ratio estimator's linearisation, so that an interval by problem is right.

        Args:
            mode: ``strict`` or ``loose``.
            kind: of these instructions alone; problems without one have NaN.
        """
        chosen = [np.array([kind in (None, one) for one in kinds], dtype=bool) for kinds in self.kinds]
        asked = np.array([one.sum() for one in chosen], dtype=np.float64)
        done = np.array([one[:, some].sum() / len(one) for one, some in zip(self.follows[mode], chosen, strict=True)])
        has, total = asked > 0, asked.sum()
        share = done.sum() / total if total else np.nan
        scores = np.full(len(asked), np.nan)
        scores[has] = share + (done[has] - share * asked[has]) * has.sum() / total
        return scores

    def count(self) -> dict[str, int]:
        """Return how many instructions there are of each kind, by name."""
        kinds = [kind for one in self.kinds for kind in one]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def judge_instructions(examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> Instructions:
    """Judge completions instruction by instruction.

    Args:
        examples: problems with the columns ``instruction_id_list`` and ``kwargs``.
        texts: of each problem, its completions.

    Raises:
        RewardError: see `esalign.rewards.ifeval.followed`.
    """
    from esalign.rewards.ifeval import followed, read_column

    columns = [example.columns for example in examples]
    given = [one if one.get("instruction_id_list") is not None else {"instruction_id_list": []} for one in columns]
    kinds = [read_column(one["instruction_id_list"]) for one in given]
    follows: dict[Mode, list[Array]] = {mode: [] for mode in MODES}
    for mode in MODES:
        for one, some, written in zip(given, kinds, texts, strict=True):
            verdicts = [followed(text, some, one["kwargs"], mode=mode) if some else [] for text in written]
            follows[mode].append(np.array(verdicts, dtype=np.bool_))
    return Instructions(kinds, follows)
