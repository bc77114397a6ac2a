"""The learner of `esalign distill`: a student, made closer to its teacher by gradients."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from esalign.distill.behaviour import student_alone
from esalign.distill.rollout import Pair, Rollout, RolloutOptions, roll_out
from esalign.distill.trainer import Trainer
from esalign.fitness.completions import SHOWN_SAMPLES
from esalign.protocols import Backend
from esalign.run.evaluate import HeldOut, HeldOutResult, evaluate
from esalign.run.learner import MINUS_REVERSE_KL, REWARD, Step
from esalign.types import Array, Sample, Sampling, State

APART = ("rollout_tokens", "prompt_tokens", "rollout_seconds", "update_seconds")  # shown under other names


class Distillation:
    """A student that learns.

    Args:
        trainer: does the updates.
        pair: student and teacher.
        backend: the student as a backend of one candidate without search vector, which judges it as any other model.
        decode: from token ids to text.
        rewarded: whether rewards judge it, and decide.
        reverse_kl_prompts: held-out problems for the reverse KL; 0 leaves it out.
        sequences: completions decoded together for it.
    """

    def __init__(
        self,
        trainer: Trainer,
        pair: Pair,
        backend: Backend,
        decode: Callable[[Sequence[int]], str],
        *,
        rewarded: bool,
        reverse_kl_prompts: int = 64,
        sequences: int = 16,
    ) -> None:
        self._trainer, self._pair, self._backend, self._decode = trainer, pair, backend, decode
        self._rewarded, self._reverse_kl_prompts, self._sequences = rewarded, reverse_kl_prompts, sequences

    @property
    def measures(self) -> tuple[str, ...]:
        """Reward where there are rewards, and minus the reverse KL to the teacher."""
        return (*([REWARD] if self._rewarded else []), *([MINUS_REVERSE_KL] if self._reverse_kl_prompts else []))

    @property
    def fingerprint(self) -> str:
        """That of what learns."""
        return self._trainer.fingerprint

    def advance(self, number: int) -> Step:
        """Do one update. What it maximises is minus the loss."""
        metrics, rollouts = self._trainer.update(number - 1)
        tokens, prompt_tokens = metrics["rollout_tokens"], metrics["prompt_tokens"]
        seconds = metrics["rollout_seconds"]
        return Step(
            metrics={
                "fitness": {"mean": -metrics["loss"]},
                **{name: value for name, value in metrics.items() if name not in APART},
            },
            samples=[self._sample(rollout) for rollout in rollouts[:SHOWN_SAMPLES]],
            generated_tokens=tokens,
            prompt_tokens=prompt_tokens,
            scored_tokens=tokens + prompt_tokens,
            machine={
                "rollout_seconds": round(seconds, 4),
                "update_seconds": round(metrics["update_seconds"], 4),
                "rollout_tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            },
        )

    def _sample(self, rollout: Rollout) -> Sample:
        return Sample(self._decode(rollout.prompt_ids), self._decode(rollout.token_ids), None)

    def judge(self, measure: str, held_out: HeldOut, sampling: Sampling) -> HeldOutResult:
        """Score the student's completions by reward, or by minus their reverse KL to the teacher."""
        if measure == REWARD:
            return evaluate(self._backend, held_out, np.zeros(0), sampling)
        prompts = [self._backend.encode(example.prompt) for example in held_out.examples[: self._reverse_kl_prompts]]
        options = RolloutOptions(sampling.max_tokens, sequences=self._sequences)
        nats, tokens = held_out_reverse_kl(self._pair, prompts, options, seed=sampling.seed)
        return HeldOutResult(-nats, generated_tokens=tokens)

    def kl_to_start(self, held_out: HeldOut, sampling: Sampling) -> None:  # the start is not kept
        """It is not known: the weights of the start are gone."""

    def snapshot(self) -> State:
        """Return a copy of what learns."""
        return dict(self._trainer.weights())

    def restore(self, snapshot: State) -> None:
        """Set what learns."""
        self._trainer.load_weights(snapshot)

    def state_dict(self) -> State:
        """The trainer's."""
        return self._trainer.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Continue from there."""
        self._trainer.load_state_dict(state)


def held_out_reverse_kl(
    pair: Pair, prompts: Sequence[Sequence[int]], options: RolloutOptions, *, seed: int
) -> tuple[Array, int]:
    """Return the reverse KL from student to teacher along completions that the student samples, on the full vocabulary.

    Args:
        pair: the models.
        prompts: token ids.
        options: how the completions are drawn; their support is not used.
        seed: of the completions' random streams, so that two students draw the same random numbers.

    Returns:
        Its mean over each completion's tokens, nats, shape (prompts,); and the tokens generated for it.
    """
    nats, tokens = [], 0
    options = replace(options, support=None)
    for first in range(0, len(prompts), options.sequences):  # a batch at a time: full distributions are large
        part = prompts[first : first + options.sequences]
        for rollout in roll_out(pair, part, student_alone(), options, seed=seed + first):
            nats.append(float(rollout.stats["reverse_kl"].mean()))
            tokens += len(rollout.token_ids)
    return np.array(nats), tokens
