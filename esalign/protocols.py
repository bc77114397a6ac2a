"""The four plugs: a space, an optimiser, a backend and a fitness. Implementations inherit nothing.

`loop.py` is the only place where they meet. A candidate crosses every boundary as its search vector, never as weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from esalign.types import (
    Array,
    Completion,
    Evaluation,
    Example,
    OnCompletion,
    Prompt,
    Sampling,
    Sequences,
    State,
    Steering,
)

if TYPE_CHECKING:
    from esalign.space import Adapter, SvdModule


class Space(Protocol):
    """What is searched: a search vector says how the singular values around frozen factors change.

    It is made as ``Space(model=..., adapter=..., **options)``. The zero vector is the start, bit for bit. Each adapted
    layer has the update ``scaling * U_B diag(s_B) M diag(s_A) V_A^T``; engines hold the frozen V_A, M and U_B, and a
    candidate is s_A and s_B alone.
    """

    @property
    def dim(self) -> int:
        """Length of the search vector."""

    @property
    def modules(self) -> "Sequence[SvdModule]":
        """The adapted layers with their frozen factors."""

    @property
    def fingerprint(self) -> str:
        """A hash: equal fingerprints mean that a search vector means the same."""

    def singular_values(self, candidates: Array) -> list[tuple[Array, Array]]:
        """Return per module s_A and s_B of candidates (population, dim), each (population, rank), float32."""

    def fold(self, vector: Array) -> "Adapter":
        """Return the plain LoRA adapter that a search vector, shape (dim,), stands for."""

    def save_pretrained(self, vector: Array, folder: str | Path) -> Path:
        """Write that adapter as a PEFT folder. Returns the folder."""


class Optimizer(Protocol):
    """A black-box optimiser over search vectors, which starts at zero and maximises.

    It is made as ``Optimizer(dim=..., sigma=..., population=..., seed=..., **options)``, where sigma is the first step
    size, in units of the search space (dimensionless in `SvdLora`).
    """

    def ask(self) -> Array:
        """Return the next candidates, shape (population, dim), float64. Asking again before telling gives the same."""

    def tell(self, candidates: Array, fitness: Array) -> None:
        """Learn the fitness, shape (population,), of the candidates that were asked.

        Raises:
            OptimizerError: a wrong shape, candidates that were not asked, or fitness that is not finite.
        """

    @property
    def mean(self) -> Array:
        """The recommendation, shape (dim,): a copy. Zero before the first tell."""

    @property
    def sigma(self) -> float:
        """The present step size, comparable with the sigma of construction."""

    def state_dict(self) -> State:
        """Everything that the future depends on, random state included."""

    def load_state_dict(self, state: State) -> None:
        """Continue from a state: what follows is bit-equal to what would have followed there.

        Raises:
            OptimizerError: the state is of another optimiser, dimension or population.
        """


@runtime_checkable
class SteerableOptimizer(Optimizer, Protocol):
    """An optimiser that goes where it is sent; `esalign.optimizers.steered.Steered` makes one of any."""

    def steer(self, steering: Steering) -> None:
        """Go on from there."""


class Backend(Protocol):
    """An inference engine that holds one base model and the frozen factors of one space.

    It is made as ``Backend(model=..., space=..., dtype=..., device=..., **options)``.
    """

    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Complete every prompt with every candidate.

        Args:
            candidates: search vectors, shape (population, dim).
            prompts: any mixture of the three kinds of prompt.
            sampling: how to decode; completion j is drawn where ``sampling.draws(j)``, else greedy. With
                ``sampling.logprob`` each completion says how likely it is.
            on_completion: called as each completion is finished, so that it can be scored while others are generated.

        Returns:
            ``rows[i][j]``: candidate i's completion of prompt j.

        Raises:
            BackendError: a prompt and its completion do not fit the model's context, and the like.
        """

    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the teacher-forced log-probabilities (nats, float32, temperature 1) of given completions.

        Args:
            candidates: search vectors, shape (population, dim).
            sequences: (prompt ids, completion ids) pairs. The prompt has at least one token.
            support: per sequence, the token ids of interest at each position, integers of shape (tokens, k).

        Returns:
            ``rows[i][j]``: of candidate i and sequence j, shape (tokens,); with support, (tokens, k).
        """

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids that the engine feeds for a prompt."""

    def close(self) -> None:
        """Free the engine's memory. Calling it twice is harmless."""


@runtime_checkable
class BoundedBackend(Protocol):
    """A backend that says how much it can read, so that longer prompts are found before a run begins."""

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its completion; None for no limit."""


@runtime_checkable
class PackagedBackend(Protocol):
    """A backend that says what it computes with, so that workers of a cluster can be held to the same versions."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of distributions, as pip knows them; those that are not installed do not count."""


@runtime_checkable
class MeasuredBackend(Protocol):
    """A backend that tells what a run's metrics should hold of it, beside what the run itself measures."""

    def measure(self) -> Mapping[str, float]:
        """Return speeds, counts and the like, by name."""


class Fitness(Protocol):
    """What the optimiser maximises.

    It is made as ``Fitness(parts, prompts=..., samples=..., **options)``, parts being a `FitnessParts`.
    """

    def prepare(self, mean: Array, generation: int) -> Steering | None:
        """Fix what all candidates of a generation share: its prompts, or rollouts drawn from the mean.

        Returns:
            Where the search goes on from and how long its steps are; None lets it go on as it would.
        """

    def evaluate(self, candidates: Array) -> Evaluation:
        """Evaluate candidates, shape (population, dim), on what `prepare` fixed."""

    def state_dict(self) -> State:
        """Everything that the next generations depend on."""

    def load_state_dict(self, state: State) -> None:
        """Continue from a state."""


@runtime_checkable
class HeldOutFitness(Protocol):
    """A fitness that is no mean reward, and so says itself how held-out problems measure a search vector."""

    @property
    def measure(self) -> str:
        """Name of the measure, e.g. ``minus-reverse-kl``: what validation and the choice of the best go by."""

    def judge(self, vector: Array, examples: Sequence[Example], seed: int) -> tuple[Array, int]:
        """Return the score of each problem, more is better, shape (problems,), and the tokens generated for it."""
