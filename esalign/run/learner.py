"""What a run makes better, step by step: a search distribution by evolution, or a student by distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from esalign.errors import ConfigError
from esalign.run.evaluate import HeldOut, HeldOutResult
from esalign.types import Array, Completion, Prompt, Sample, Sampling, State

REWARD = "reward"
MINUS_REVERSE_KL = "minus-reverse-kl"
"""What held-out problems measure: the mean reward, or closeness to a teacher in nats per token; more is better."""


@dataclass(frozen=True)
class HeldOutSets:
    """What a run is judged on.

    Args:
        validation: chooses the best state.
        test: read only for the start and the result.
        probe: off-task problems, the measure of forgetting.
    """

    validation: HeldOut
    test: HeldOut
    probe: HeldOut | None = None


@dataclass(frozen=True)
class Step:
    """What one generation, or one update, came to.

    Args:
        metrics: for the metrics file; ``fitness`` holds at least its ``mean``, which is what the learner maximises.
        samples: a few completions, for people to read.
        generated_tokens: tokens generated for it.
        prompt_tokens: prompt tokens read for it.
        scored_tokens: tokens read teacher-forced for it.
        machine: speeds and the like, which are not reproducible.
        flat: whether all candidates were equal, so that nothing was learnt.
    """

    metrics: Mapping[str, Any]
    samples: Sequence[Sample] = ()
    generated_tokens: int = 0
    prompt_tokens: int = 0
    scored_tokens: int = 0
    machine: Mapping[str, float] = field(default_factory=dict)
    flat: bool = False


class Learner(Protocol):
    """What a run drives: it goes forward, and is judged, kept and restored at any step."""

    @property
    def measures(self) -> tuple[str, ...]:
        """What it can be judged by on held-out problems; the first is what it maximises, and decides."""

    @property
    def fingerprint(self) -> str:
        """Which learner a checkpoint belongs to: equal fingerprints mean that its numbers mean the same."""

    def advance(self, number: int) -> Step:
        """Do one generation or update; the first has number 1."""

    def judge(self, measure: str, held_out: HeldOut, sampling: Sampling) -> HeldOutResult:
        """Score it as it is now on held-out problems, by one of its measures; more is better."""

    def kl_to_start(self, held_out: HeldOut, sampling: Sampling) -> float | None:
        """Return how far it has moved from its start, nats per token; None where this is not known."""

    def snapshot(self) -> State:
        """Return a copy of what is learnt, as it is now."""

    def restore(self, snapshot: State) -> None:
        """Be what a snapshot says, from now on; it is called at the end of a run, to go on from nowhere else."""

    def state_dict(self) -> State:
        """Everything that the next steps depend on."""

    def load_state_dict(self, state: State) -> None:
        """Continue from a state: what follows is bit-equal to what would have followed there."""


@runtime_checkable
class VectorLearner(Protocol):
    """A learner whose snapshots are points, so that there is a straight way from one to another.

    By its reward, `judge` tells the completions, too.
    """

    def between(self, start: State, end: State, share: float) -> State:
        """Return the snapshot at a share of the way, in [0, 1]."""

    def log_probs(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Array:
        """Return the log-probability, nats, at temperature 1, of each prompt's completion for it as it is now."""


def order_measures(measures: Sequence[str], select_by: str | None) -> tuple[str, ...]:
    """Return a learner's measures, the one to select by first: its own first, unless the user says another.

    Raises:
        ConfigError: the learner has no such measure.
    """
    if select_by is None:
        return tuple(measures)
    if select_by not in measures:
        raise ConfigError(f"run.select_by is {select_by!r}, expected one of {', '.join(measures)}")
    return (select_by, *(name for name in measures if name != select_by))
