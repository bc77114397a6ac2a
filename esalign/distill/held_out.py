"""How far the student is from the teacher where the student itself goes: on held-out prompts, completed alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from esalign.distill.behaviour import student_alone
from esalign.distill.rollout import Pair, RolloutOptions, roll_out
from esalign.types import Array


@dataclass(frozen=True)
class Distance:
    """Reverse KL of held-out completions.

    Args:
        nats: mean over each completion's tokens, shape (prompts,).
        generated_tokens: tokens generated for it.
    """

    nats: Array
    generated_tokens: int


def held_out_distance(pair: Pair, prompts: Sequence[Sequence[int]], options: RolloutOptions, *, seed: int) -> Distance:
    """Return the reverse KL from student to teacher along completions that the student samples, on the full vocabulary.

    Args:
        pair: the models.
        prompts: token ids.
        options: how the completions are drawn; their support is not used.
        seed: of the completions' random streams, so that two students draw the same random numbers.
    """
    nats, tokens = [], 0
    for first in range(0, len(prompts), options.sequences):  # a batch at a time: full distributions are large
        part = prompts[first : first + options.sequences]
        options = replace(options, support=None)
        for rollout in roll_out(pair, part, student_alone(), options, seed=seed + first):
            nats.append(float(rollout.stats["reverse_kl"].mean()))
            tokens += len(rollout.token_ids)
    return Distance(np.array(nats), tokens)
