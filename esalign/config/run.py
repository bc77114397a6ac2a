"""The schema of `esalign run`."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from esalign.config.cluster import ClusterSection
from esalign.config.sections import (
    BackendSection,
    DataSection,
    Place,
    ProbeSection,
    Rewards,
    RunSection,
    SamplingSection,
    ScoringSection,
    Section,
)
from esalign.registry import DEFAULT_POPULATION

MOST_SIGMA = 1000


class ModelSection(Section):
    """The base model, and the adapter to start from, if any."""

    path: Place = Field(description="Base model: a Hugging Face id, a local folder, a GGUF file, or 'embedded'.")
    adapter: Place | None = Field(
        None,
        description="LoRA adapter to start from: PEFT folder or hub id, GGUF file, or 'embedded'; none: the model.",
    )


class SpaceSection(Section):
    """What is searched. Options of the space stand beside its name: ``fraction`` of svd-lora, ``rank`` of base-svd."""

    model_config = ConfigDict(extra="allow")

    name: str | None = Field(
        None,
        description="svd-lora: the singular values of model.adapter; base-svd: the singular directions of the model's "
        "own weights; or a plug-in's name; none: svd-lora where there is an adapter, else base-svd.",
    )
    tie: int | None = Field(None, ge=1, description="Move the space by so few numbers; none: by all of its own.")
    tie_over: Literal["all", "layers"] = Field("all", description="Whether each adapted layer has numbers of its own.")
    tie_seed: int = Field(0, ge=0, description="Seed of the map from few numbers to all.")

    @property
    def options(self) -> dict[str, Any]:
        """The space's own options."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _options_stand_beside_the_name(self) -> "SpaceSection":
        if "options" in self.options:
            raise ValueError("a space has its options beside its name: {name: svd-lora, fraction: 0.5}")
        return self


class FitnessSection(Section):
    """What the optimiser maximises."""

    name: str = Field(
        "reward",
        description="reward: mean reward of what each candidate generates, surer completions counting more; "
        "surrogate: docs/surrogate.md; distillation: closeness to a teacher; or a plug-in's name.",
    )
    prompts: int | None = Field(
        None,
        ge=1,
        description="Problems per generation; none: 16, and up to 400 as candidates come near each other; 48 at a time "
        "for the surrogate, 100 for distillation.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Completions per problem; none: 1, or 4 for the surrogate. Above 1 needs temperature > 0.",
    )
    kl_budget: float | None = Field(
        None,
        gt=0,
        description="Nats per token that candidates may be away from the start; farther ones rank behind all others.",
    )
    options: dict[str, Any] = Field({}, description="Options of the fitness.")


class OptimizerSection(Section):
    """The evolution strategy."""

    name: str = Field("cma-es", description="cma-es, openai-es, random-search, nevergrad:<Name>, or a plug-in's name.")
    population: int = Field(DEFAULT_POPULATION, ge=2, le=100_000, description="Candidates per generation.")
    sigma: float | None = Field(
        None, gt=0, le=MOST_SIGMA, description="First step size, in units of the space; none: what suits the space."
    )
    options: dict[str, Any] = Field({}, description="Options of the optimiser.")


class SearchRunSection(RunSection):
    """How long to search, how the search is judged, and where the results go."""

    flat_limit: int = Field(5, ge=1, description="Stop after so many generations in which all candidates are equal.")
    keep_sampled: bool = Field(
        True,
        description="Go back by up to half of the way where completions sampled at temperature 1 earn no more than at "
        "the start.",
    )
    kl_prompts: int = Field(64, ge=0, description="Validation problems for the KL to the start; 0 leaves it out.")


class RunConfig(Section):
    """A run: everything that `esalign run` needs to know."""

    model: ModelSection
    space: SpaceSection = SpaceSection()
    backend: BackendSection = BackendSection()
    cluster: ClusterSection | None = None
    data: DataSection
    rewards: Rewards
    scoring: ScoringSection = ScoringSection()
    sampling: SamplingSection = SamplingSection()
    fitness: FitnessSection = FitnessSection()
    optimizer: OptimizerSection = OptimizerSection()
    probe: ProbeSection | None = None
    run: SearchRunSection = SearchRunSection()

    def describe(self) -> str:
        """Return '24 candidates x 100 problems each, cma-es on torch'."""
        fitness = self.fitness
        samples = f" x {fitness.samples} completions" if (fitness.samples or 1) > 1 else ""
        who = "of the mean" if fitness.name == "surrogate" else "each"
        number = fitness.prompts or ("as many as tell them apart" if fitness.name == "reward" else None)
        problems = f" x {number} problems{samples} {who}" if number else ""
        return f"{self.optimizer.population} candidates{problems}, {self.optimizer.name} on {self.backend.name}"

    @model_validator(mode="after")
    def _scores_where_there_are_machines(self) -> "RunConfig":
        if self.scoring.place == "cluster" and self.cluster is None:
            raise ValueError(
                "scoring.place is cluster, but there is no section cluster: add one, e.g. cluster.workers=auto, or set "
                "scoring.place=run"
            )
        return self
