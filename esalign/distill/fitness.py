"""Distillation without gradients: minus the reverse KL to a teacher, on prefixes that all candidates share.

Two traps lie here. A candidate that is scored on its *own* completions can hack their length: a mean over tokens
rewards padding, a sum rewards stopping early. And on completions that are fixed, the *sampled* log-ratio log p_S -
log p_T is inverted: it falls when the candidate moves away from what was written. Here both are impossible by
construction: one rollout per prompt is drawn before any candidate is seen, and at each of its prefixes the
candidate's whole distribution is compared with the teacher's, on a support that is fixed as well, all other tokens
being merged into one.
"""

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esalign.data import MiniBatches
from esalign.distill.behaviour import Schedule, Shape, TrustRegion
from esalign.distill.divergence import append_tail, reverse_kl
from esalign.distill.models import make_pair
from esalign.distill.rollout import Rollout, RolloutOptions
from esalign.distill.sources import (
    BlendedRollouts,
    EngineRollouts,
    RolloutSource,
    load_adapted_student,
    vocabulary_of_engine,
)
from esalign.engines.loading import load_model
from esalign.errors import ConfigError, DistillationError
from esalign.fitness import FitnessParts
from esalign.protocols import Backend
from esalign.run.learner import MINUS_REVERSE_KL
from esalign.seeds import Use, derive
from esalign.types import Array, Evaluation, Example, State


class DistillationFitness:
    """Minus the mean reverse KL from each candidate to the teacher, in nats per prefix, on shared rollouts.

    Args:
        backend: the engine; it scores candidates, with a support.
        batches: where the prompts come from.
        source: of the rollouts.
        prompts: problems per set of rollouts.
        samples: rollouts per problem.
        refresh: generations that one set serves.
        seed: what the rollouts' seeds derive from.
        judged_prompts: held-out problems that `judge` takes of those it is given.
    """

    def __init__(
        self,
        backend: Backend,
        batches: MiniBatches,
        source: RolloutSource,
        *,
        prompts: int,
        samples: int = 1,
        refresh: int = 1,
        seed: int = 0,
        judged_prompts: int = 64,
    ) -> None:
        self._backend, self._batches, self._source = backend, batches, source
        self._prompts, self._samples, self._refresh, self._seed = prompts, samples, refresh, seed
        self._judged_prompts = judged_prompts
        self._age = refresh
        self._rollouts: list[Rollout] = []
        self._fresh = False

    def prepare(self, mean: Array, generation: int) -> None:
        """Draw rollouts from the mean when the last ones have served; the teacher runs here and nowhere else."""
        self._age += 1
        self._fresh = self._age > self._refresh
        if not self._fresh:
            return
        self._age = 1
        examples = [e for e in self._batches.next(self._prompts) for _ in range(self._samples)]
        ids = [tuple(self._backend.encode(example.prompt)) for example in examples]
        seed = derive(self._seed, Use.ROLLOUTS, generation)
        rollouts = self._source.draw(mean, ids, step=max(generation - 1, 0), seed=seed)
        if not rollouts:
            raise DistillationError(f"none of {len(ids)} rollouts has a token: is the mean's model broken?")
        self._rollouts = [rollout.cpu() for rollout in rollouts]

    @property
    def measure(self) -> str:
        """Closeness to the teacher, on completions that the search vector itself samples."""
        return MINUS_REVERSE_KL

    def judge(self, vector: Array, examples: Sequence[Example], seed: int) -> tuple[Array, int]:
        """Return minus the reverse KL of each of the first problems, nats per token, and the tokens sampled for it."""
        ids = [tuple(self._backend.encode(example.prompt)) for example in examples[: self._judged_prompts]]
        rollouts = [rollout.cpu() for rollout in self._source.draw_alone(vector, ids, seed=seed)]
        nats = self._nats(vector[None], rollouts)[0]
        tokens = [len(rollout.token_ids) for rollout in rollouts]
        means = iter([float(part.mean()) for part in torch.from_numpy(nats).split(tokens)])
        waiting = iter([*(rollout.prompt_ids for rollout in rollouts), None])
        scores, head = [], next(waiting)
        for prompt in ids:  # an engine's empty completions are no rollouts
            found = prompt == head
            scores.append(-next(means) if found else nan)
            head = next(waiting) if found else head
        return np.array(scores), sum(tokens)

    def evaluate(self, candidates: Array) -> Evaluation:
        """Score the shared rollouts, teacher-forced, with every candidate."""
        nats = self._nats(candidates, self._rollouts).mean(axis=1)
        sequences = [(rollout.prompt_ids, rollout.token_ids) for rollout in self._rollouts]
        read = sum(len(prompt) + len(completion) for prompt, completion in sequences)
        return Evaluation(
            fitness=-nats,
            metrics={"reverse_kl": float(np.mean(nats)), **self._describe()},
            generated_tokens=sum(len(completion) for _, completion in sequences) if self._fresh else 0,
            prompt_tokens=sum(len(prompt) for prompt, _ in sequences) if self._fresh else 0,
            scored_tokens=len(candidates) * read,
        )

    def _nats(self, candidates: Array, rollouts: Sequence[Rollout]) -> Array:
        """Return the reverse KL of each candidate at every token of rollouts, shape (population, all tokens)."""
        supports = [self._source.vocabulary.with_ends(_support(rollout)) for rollout in rollouts]
        sequences = [(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        rows = self._backend.score(candidates, sequences, supports)
        teacher = torch.cat([rollout.teacher for rollout in rollouts]).double()
        wanted = torch.from_numpy(np.concatenate(supports))
        return np.stack([self._divergence(torch.from_numpy(np.concatenate(row)), wanted, teacher) for row in rows])

    def _divergence(self, scores: Tensor, wanted: Tensor, teacher: Tensor) -> Array:
        """Return the reverse KL of one candidate at every token, from its scores of shape (all tokens, wanted)."""
        vocabulary = self._source.vocabulary
        student = vocabulary.fold_ends(scores.double(), wanted)
        if student.shape[-1] < vocabulary.size - len(vocabulary.merged):
            student = append_tail(student)
        else:  # the support is the vocabulary, and nothing is left for a tail
            student, teacher = student.log_softmax(dim=-1), teacher[:, :-1]
        nats: Array = reverse_kl(student, teacher).numpy()
        if not np.isfinite(nats).all():
            raise DistillationError(
                f"a candidate's reverse KL is {nats.mean()}, expected a finite number: the engine gives a token no "
                "mass (half precision?), or the step size is far too large"
            )
        return nats

    def _describe(self) -> dict[str, float]:
        """Return the means of what the rollouts recorded, over their tokens."""
        tokens = sum(len(rollout.token_ids) for rollout in self._rollouts)
        stats: dict[str, float] = {}
        for name in ("beta", "kl_student", "teacher_entropy"):
            parts = [rollout.stats[name] for rollout in self._rollouts if name in rollout.stats]
            stats[name] = float(torch.cat(parts).mean()) if parts else nan
        return {**stats, "rollouts": float(len(self._rollouts)), "mean_tokens": tokens / len(self._rollouts)}

    def state_dict(self) -> State:
        """The place in the prompts, and the rollouts in use."""
        return {
            "batches": self._batches.state_dict(),
            "age": self._age,
            "rollouts": [_rollout_state(rollout) for rollout in self._rollouts],
        }

    def load_state_dict(self, state: State) -> None:
        """Continue with those rollouts."""
        self._batches.load_state_dict(state["batches"])
        self._age = int(state["age"])
        self._rollouts = [_rollout_of(kept) for kept in state["rollouts"]]


def make_fitness(
    parts: FitnessParts,
    *,
    prompts: int = 100,
    samples: int = 1,
    teacher: str,
    teacher_adapter: str | None = None,
    student: str | None = None,
    budget: float = 0.02,
    steps: int | None = None,
    schedule: Shape = "linear",
    support: int | None = 16,
    refresh: int = 1,
    sequences: int = 64,
    judged_prompts: int = 64,
    dtype: str = "auto",
    device: str = "auto",
) -> DistillationFitness:
    """Make the fitness that a configuration names ``distillation``.

    Args:
        parts: what every fitness is made of; ``sampling.max_tokens`` limits the rollouts, drawn at temperature 1.
        prompts: problems per set of rollouts.
        samples: rollouts per problem.
        teacher: Hugging Face id or folder of the teacher.
        teacher_adapter: its LoRA adapter.
        student: the base model for transformers, where the engine's is another file.
        budget: of the trust region, nats per token; 0 lets the engine complete alone, and saves a second student.
        steps: generations over which the budget falls to 0; None keeps it.
        schedule: how it falls.
        support: tokens that count one by one; None: all.
        refresh: generations that one set of rollouts serves.
        sequences: rollouts decoded together.
        judged_prompts: held-out problems on which the reverse KL is measured.
        dtype: of teacher and second student.
        device: of both.

    Raises:
        ConfigError: an option is out of range.
        DistillationError: teacher and student do not fit.
    """
    for name, value, least in (
        ("budget", budget, 0),
        ("refresh", refresh, 1),
        ("sequences", sequences, 1),
        ("judged_prompts", judged_prompts, 1),
    ):
        if not value >= least:
            raise ConfigError(f"fitness.options.{name} is {value!r}, expected at least {least}")
    for name, optional in (("steps", steps), ("support", support)):
        if optional is not None and optional < 1:
            raise ConfigError(f"fitness.options.{name} is {optional!r}, expected at least 1, or null")
    backend, space, student = parts.backend, parts.space, student or parts.model
    if space is None or student is None:
        raise ConfigError("fitness 'distillation' needs the space and the base model, expected both in its parts")
    if steps is not None and parts.generations is not None and steps > parts.generations:
        raise ConfigError(
            f"fitness.options.steps is {steps}, but the run has only {parts.generations} generations, so the teacher's "
            "help would never end: shorten it, lengthen the run, or leave it out to keep the budget"
        )
    loaded = load_model("teacher", teacher, teacher_adapter, dtype=dtype, device=device)
    source: RolloutSource
    limits: dict[str, Any] = {"max_tokens": parts.sampling.max_tokens, "sequences": sequences}
    if budget == 0:
        vocabulary = vocabulary_of_engine(backend, loaded, student)
        options = RolloutOptions(support=support or vocabulary.size - len(vocabulary.merged), **limits)
        source = EngineRollouts(backend, loaded.model, vocabulary, options)
    else:
        pair = make_pair(load_adapted_student(student, space, dtype=dtype, device=device), loaded)
        every = pair.vocabulary.size - len(pair.vocabulary.merged)
        behaviour = TrustRegion(Schedule(budget, steps, schedule))
        source = BlendedRollouts(pair, space, behaviour, RolloutOptions(support=support or every, **limits))
    return DistillationFitness(
        backend,
        parts.batches,
        source,
        prompts=prompts,
        samples=samples,
        refresh=refresh,
        seed=parts.seed,
        judged_prompts=judged_prompts,
    )


def _support(rollout: Rollout) -> Tensor:
    if rollout.support is None:
        raise DistillationError("rollouts for a fitness need a support: set RolloutOptions.support to a number")
    return rollout.support


def _rollout_state(rollout: Rollout) -> State:
    return {
        "prompt": list(rollout.prompt_ids),
        "answer": list(rollout.token_ids),
        "finished": rollout.finished,
        "support": _support(rollout).numpy(),
        "teacher": rollout.teacher.numpy(),
        "stats": {name: values.numpy() for name, values in rollout.stats.items()},
    }


def _rollout_of(state: State) -> Rollout:
    return Rollout(
        prompt_ids=tuple(state["prompt"]),
        token_ids=tuple(state["answer"]),
        finished=bool(state["finished"]),
        support=torch.from_numpy(state["support"]),
        teacher=torch.from_numpy(state["teacher"]),
        stats={name: torch.from_numpy(values) for name, values in state["stats"].items()},
    )
