"""One update of on-policy distillation: roll out, compare with the teacher at every token, step."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esalign.config.distill import BehaviourSection, LossSection, TrainingSection
from esalign.data import MiniBatches
from esalign.distill.behaviour import TrustRegion, make_behaviour
from esalign.distill.divergence import DIVERGENCES, append_tail
from esalign.distill.forced import completion_logits, in_batches
from esalign.distill.rollout import Pair, Rollout, RolloutOptions, roll_out
from esalign.errors import CheckpointError, DistillationError
from esalign.seeds import Use, derive
from esalign.types import Array, Prompt, State


class Trainer:
    """Distils a teacher into a student, one update at a time.

    Args:
        pair: the models.
        parameters: what learns, {name: tensor of the student}.
        encode: from prompts to ids.
        batches: where each update's problems come from.
        behaviour: who samples.
        loss: what is minimised.
        training: sizes and rates.
        max_tokens: the most tokens of a rollout.
        seed: of the rollouts.
    """

    def __init__(
        self,
        pair: Pair,
        parameters: Mapping[str, Tensor],
        encode: Callable[[Prompt], tuple[int, ...]],
        batches: MiniBatches,
        *,
        behaviour: BehaviourSection | None = None,
        loss: LossSection | None = None,
        training: TrainingSection | None = None,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        self._pair, self._encode, self._batches, self._seed = pair, encode, batches, seed
        self._parameters = dict(parameters)
        self._section, self._loss = behaviour or BehaviourSection(), loss or LossSection()
        self._training = training = training or TrainingSection()
        self._behaviour = make_behaviour(self._section)
        self._options = RolloutOptions(
            max_tokens=max_tokens,
            support=self._loss.support,
            sequences=training.sequences,
            read_tokens=training.batch_tokens,
        )
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=training.learning_rate, weight_decay=training.weight_decay
        )

    def update(self, step: int) -> tuple[dict[str, Any], list[Rollout]]:
        """Do one update.

        Args:
            step: its number, the first being 0; schedules are at it.

        Returns:
            What the metrics file gets, and the rollouts.

        Raises:
            DistillationError: logits, loss or gradient are not finite.
        """
        training = self._training
        examples = [e for e in self._batches.next(training.prompts) for _ in range(training.samples)]
        prompts = [self._encode(example.prompt) for example in examples]
        began = time.perf_counter()
        seed = derive(self._seed, Use.ROLLOUTS, step)
        rollouts = roll_out(self._pair, prompts, self._behaviour, self._options, step=step, seed=seed)
        rolled = time.perf_counter()
        learning = self._learn(rollouts, step)
        seconds = {"rollout_seconds": rolled - began, "update_seconds": time.perf_counter() - rolled}
        return {**learning, **self._describe(rollouts, step), **seconds}, rollouts

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

    def _describe(self, rollouts: Sequence[Rollout], step: int) -> dict[str, Any]:
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
            "rollout_tokens": tokens,
            "prompt_tokens": sum(len(rollout.prompt_ids) for rollout in rollouts),
        }

    @property
    def fingerprint(self) -> str:
        """Names and shapes of what learns."""
        shapes = repr(sorted((name, tuple(parameter.shape)) for name, parameter in self._parameters.items()))
        return hashlib.sha256(shapes.encode()).hexdigest()

    def weights(self) -> dict[str, Array]:
        """Return a copy of what learns."""
        return {name: _to_array(parameter) for name, parameter in self._parameters.items()}

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Set what learns.

        Raises:
            CheckpointError: the weights are of another student.
        """
        if weights.keys() != self._parameters.keys():
            raise CheckpointError("the checkpoint is of another student or adapter: start a new run (run.name=...)")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(weights[name]))

    def state_dict(self) -> State:
        """Return everything that the next updates depend on."""
        moments = {}
        for name, parameter in self._parameters.items():
            kept = self._optimizer.state.get(parameter, {})
            moments[name] = {key: _to_array(value) for key, value in kept.items()}
        return {"weights": self.weights(), "moments": moments, "batches": self._batches.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state: what follows is what would have followed there.

        Raises:
            CheckpointError: the state is of another student.
        """
        self.load_weights(state["weights"])
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


def _to_array(tensor: Tensor) -> Array:
    """Return a copy as float32, which holds bfloat16 and float16 exactly."""
    array: Array = tensor.detach().float().cpu().numpy().copy()
    return array
