"""The learner of `esalign distill`: a student, made closer to its teacher by gradients, one update at a time."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from esalign.config.distill import BehaviourSection, LossSection, TrainingSection
from esalign.data import MiniBatches
from esalign.distill.behaviour import TrustRegion, make_behaviour, student_alone
from esalign.distill.divergence import DIVERGENCES, append_tail
from esalign.distill.forced import completion_logits, in_batches
from esalign.distill.rollout import Pair, Rollout, RolloutOptions, roll_out
from esalign.errors import CheckpointError, DistillationError
from esalign.fitness.completions import SHOWN_SAMPLES
from esalign.protocols import Backend
from esalign.run.evaluate import HeldOut, HeldOutResult, evaluate
from esalign.run.learner import MINUS_REVERSE_KL, REWARD, Step
from esalign.seeds import Use, derive
from esalign.types import Array, Sample, Sampling, State


class Distillation:
    """A student that learns: it rolls out, compares itself with the teacher at every token, and takes a step.

    Args:
        pair: student and teacher.
        parameters: what learns, {name: tensor of the student}.
        backend: the student as a backend of one candidate without search vector, which judges it as any other model.
        batches: where each update's problems come from.
        decode: from token ids to text.
        behaviour: who samples.
        loss: what is minimised.
        training: sizes and rates.
        max_tokens: the most tokens of a rollout.
        seed: of the rollouts.
        rewarded: whether rewards judge it, and decide.
        reverse_kl_prompts: held-out problems for the reverse KL; 0 leaves it out.
    """

    def __init__(
        self,
        pair: Pair,
        parameters: Mapping[str, Tensor],
        backend: Backend,
        batches: MiniBatches,
        decode: Callable[[Sequence[int]], str],
        *,
        behaviour: BehaviourSection,
        loss: LossSection,
        training: TrainingSection,
        max_tokens: int,
        seed: int,
        rewarded: bool,
        reverse_kl_prompts: int,
    ) -> None:
        self._pair, self._backend, self._batches, self._decode = pair, backend, batches, decode
        self._parameters, self._seed = dict(parameters), seed
        self._section, self._loss, self._training = behaviour, loss, training
        self._rewarded, self._reverse_kl_prompts = rewarded, reverse_kl_prompts
        self._behaviour = make_behaviour(behaviour)
        self._options = RolloutOptions(
            max_tokens=max_tokens,
            support=loss.support,
            sequences=training.sequences,
            read_tokens=training.batch_tokens,
        )
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=training.learning_rate, weight_decay=training.weight_decay
        )

    @property
    def measures(self) -> tuple[str, ...]:
        """Reward where there are rewards, and minus the reverse KL to the teacher."""
        return (*([REWARD] if self._rewarded else []), *([MINUS_REVERSE_KL] if self._reverse_kl_prompts else []))

    @property
    def fingerprint(self) -> str:
        """Names and shapes of what learns."""
        shapes = repr(sorted((name, tuple(parameter.shape)) for name, parameter in self._parameters.items()))
        return hashlib.sha256(shapes.encode()).hexdigest()

    def advance(self, number: int) -> Step:
        """Do one update. What it maximises is minus the loss.

        Raises:
            DistillationError: logits, loss or gradient are not finite.
        """
        step, training = number - 1, self._training  # schedules begin at 0
        examples = [e for e in self._batches.next(training.prompts) for _ in range(training.samples)]
        prompts = [self._backend.encode(example.prompt) for example in examples]
        began = time.perf_counter()
        seed = derive(self._seed, Use.ROLLOUTS, step)
        rollouts = roll_out(self._pair, prompts, self._behaviour, self._options, step=step, seed=seed)
        rolled = time.perf_counter()
        learning = self._learn(rollouts, step)
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        prompt_tokens = sum(len(rollout.prompt_ids) for rollout in rollouts)
        shown = rollouts[:SHOWN_SAMPLES]
        return Step(
            metrics={"fitness": {"mean": -learning["loss"]}, **learning, **self._describe(rollouts, step)},
            samples=[Sample(self._decode(one.prompt_ids), self._decode(one.token_ids), None) for one in shown],
            generated_tokens=tokens,
            prompt_tokens=prompt_tokens,
            scored_tokens=tokens + prompt_tokens,
            machine={
                "rollout_seconds": round(rolled - began, 4),
                "update_seconds": round(time.perf_counter() - rolled, 4),
                "rollout_tokens_per_second": round(tokens / max(rolled - began, 1e-9), 1),
            },
        )

    def judge(self, measure: str, held_out: HeldOut, sampling: Sampling) -> HeldOutResult:
        """Score the student's completions by reward, or by minus their reverse KL to the teacher."""
        if measure == REWARD:
            return evaluate(self._backend, held_out, np.zeros(0), sampling)
        prompts = [self._backend.encode(example.prompt) for example in held_out.examples[: self._reverse_kl_prompts]]
        options = RolloutOptions(sampling.max_tokens, sequences=min(16, self._training.sequences))
        nats, tokens = held_out_reverse_kl(self._pair, prompts, options, seed=sampling.seed)
        return HeldOutResult(-nats, generated_tokens=tokens)

    def kl_to_start(self, held_out: HeldOut, sampling: Sampling) -> None:  # the start is not kept
        """It is not known: the weights of the start are gone."""

    def _learn(self, rollouts: Sequence[Rollout], step: int) -> dict[str, float]:
        """Take one step down the mean loss of all completed tokens."""
        training = self._training
        rate = training.learning_rate * min(1.0, (step + 1) / max(training.warmup_steps, 1))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        count = sum(len(rollout.token_ids) for rollout in rollouts)
        sequences = [(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        loss = 0.0
        for places in in_batches(sequences, training.batch_tokens):
            part = self._losses([rollouts[place] for place in places], step).sum() / count
            part.backward()
            loss += part.item()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), training.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DistillationError(
                f"update {step + 1}: the loss is {loss} and the gradient's norm {norm}, expected finite numbers: lower "
                "training.learning_rate, or compute in float32"
            )
        self._optimizer.step()
        return {"loss": loss, "grad_norm": norm, "learning_rate": rate}

    def _losses(self, rollouts: Sequence[Rollout], step: int) -> Tensor:
        """Return the loss at every completed token, nats, shape (tokens,): a divergence, backpropagated through itself.

        No importance weights: the prefixes are those that the behaviour visited, and that is all it decides. A sampled
        log-ratio as an advantage would have no gradient in expectation on a support; the divergence itself has.
        """
        logits = completion_logits(
            self._pair.student, [(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        )
        student, section = self._pair.vocabulary.logprobs(logits), self._section
        if section.name == "sft" and (section.steps is None or step < section.steps):
            drawn = torch.tensor([token for rollout in rollouts for token in rollout.token_ids], device=logits.device)
            return -student.gather(-1, drawn[:, None])[:, 0]
        supports = [rollout.support for rollout in rollouts if rollout.support is not None]
        if supports:
            student = append_tail(student.gather(-1, torch.cat(supports)))
        return DIVERGENCES[self._loss.divergence](student, torch.cat([rollout.teacher for rollout in rollouts]))

    def _describe(self, rollouts: Sequence[Rollout], step: int) -> dict[str, float]:
        """Return the numbers that tell the story of the rollouts, means over their tokens."""
        stats = {name: torch.cat([rollout.stats[name] for rollout in rollouts]) for name in rollouts[0].stats}
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        beta = stats["beta"]
        budget = self._behaviour.budget.at(step) if isinstance(self._behaviour, TrustRegion) else math.nan
        return {
            "budget": budget,
            "beta": float(beta.mean()),
            "at_bound": float(((beta > 0) & (beta < 1)).float().mean()),
            "at_teacher": float((beta == 1).float().mean()),
            "kl_student": float(stats["kl_student"].mean()),
            "reverse_kl": float(stats["reverse_kl"].mean()),
            "teacher_entropy": float(stats["teacher_entropy"].mean()),
            "mean_tokens": tokens / len(rollouts),
            "truncated": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
        }

    def snapshot(self) -> dict[str, Array]:
        """Return a copy of what learns."""
        return {name: _to_array(parameter) for name, parameter in self._parameters.items()}

    def restore(self, snapshot: State) -> None:
        """Set what learns.

        Raises:
            CheckpointError: it is of another student.
        """
        if snapshot.keys() != self._parameters.keys():
            raise CheckpointError("the checkpoint is of another student or adapter: start a new run (run.name=...)")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(snapshot[name]))

    def state_dict(self) -> State:
        """Return everything that the next updates depend on."""
        moments = {}
        for name, parameter in self._parameters.items():
            kept = self._optimizer.state.get(parameter, {})
            moments[name] = {key: _to_array(value) for key, value in kept.items()}
        return {"weights": self.snapshot(), "moments": moments, "batches": self._batches.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state: what follows is what would have followed there.

        Raises:
            CheckpointError: the state is of another student.
        """
        self.restore(state["weights"])
        for name, parameter in self._parameters.items():
            kept = state["moments"][name]
            if kept:
                self._optimizer.state[parameter] = {
                    key: torch.from_numpy(value).to(torch.float32 if key == "step" else parameter.dtype)
                    for key, value in kept.items()
                }
                for key in ("exp_avg", "exp_avg_sq"):
                    self._optimizer.state[parameter][key] = self._optimizer.state[parameter][key].to(parameter.device)
        self._batches.load_state_dict(state["batches"])


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


def _to_array(tensor: Tensor) -> Array:
    """Return a copy as float32, which holds bfloat16 and float16 exactly."""
    array: Array = tensor.detach().float().cpu().numpy().copy()
    return array
