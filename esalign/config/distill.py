"""The schema of a distillation: everything that `esalign distill` needs to know."""

from typing import Literal

from pydantic import Field, model_validator

from esalign.config.sections import (
    DataSection,
    Place,
    ProbeSection,
    RewardSection,
    RunSection,
    SamplingSection,
    ScoringSection,
    Section,
    Targets,
)


class StudentSection(Section):
    """The model that learns."""

    path: Place = Field(description="Hugging Face id, a local folder, or 'embedded'.")
    adapter: Place | None = Field(None, description="LoRA adapter to start from; none starts a new one.")
    tuning: Literal["lora", "full"] = Field("lora", description="What learns: a LoRA adapter, or all weights.")
    rank: int = Field(16, ge=1, description="Rank of a new adapter.")
    alpha: float | None = Field(
        None, gt=0, description="A new adapter is scaled by alpha / rank; none: twice the rank."
    )
    target_modules: Targets = Field("all-linear", description="Layers of a new adapter, by the ends of their names.")
    dtype: str = Field("auto", description="Type of frozen weights: auto (the model's own), float32, bfloat16 ...")


class TeacherSection(Section):
    """The model that is learnt from; it must have the student's tokenizer."""

    path: Place = Field(description="Hugging Face id, a local folder, or 'embedded'.")
    adapter: Place | None = Field(None, description="LoRA adapter of the teacher.")
    dtype: str = Field("auto", description="Type of its weights: auto (the model's own), float32, bfloat16 ...")


class BehaviourSection(Section):
    """Who samples the prefixes that the student learns on, during the warm-up; after it, the student does."""

    name: Literal["trust-region", "student", "temperature", "speculative", "sft"] = Field(
        "trust-region",
        description="trust-region: TRB; student: plain on-policy distillation; temperature: the student, sharpened; "
        "speculative: SKD; sft: the teacher, with the loss of supervised learning.",
    )
    steps: int | None = Field(25, ge=1, description="Updates of the warm-up (K); none: as long as the run.")
    budget: float = Field(0.02, ge=0, description="trust-region: first budget of KL to the student, nats per token.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How budget or temperature change over the warm-up; constant: not at all, until its end."
    )
    temperature: float = Field(0.9, gt=0, description="temperature: the first; it ends at 1.")
    top: int = Field(25, ge=1, description="speculative: number of the teacher's likeliest tokens that pass.")


class LossSection(Section):
    """What the student minimises at each visited prefix."""

    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"] = Field(
        "reverse_kl", description="From student to teacher: reverse_kl, forward_kl or jensen_shannon."
    )
    support: int | None = Field(
        16, ge=1, description="The student's likeliest tokens that count one by one, all others as one; none: all do."
    )


class TrainingSection(Section):
    """The updates: AdamW with a constant rate after a linear warm-up."""

    prompts: int = Field(64, ge=1, description="Problems per update.")
    samples: int = Field(4, ge=1, description="Rollouts per problem.")
    learning_rate: float = Field(1e-4, gt=0, description="1e-5 is the paper's, for all weights; LoRA takes more.")
    warmup_steps: int = Field(15, ge=0, description="Updates over which the rate rises to its value.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are cut to this norm.")
    sequences: int = Field(64, ge=1, description="Rollouts decoded together.")
    batch_tokens: int = Field(4096, ge=1, description="Tokens read in one forward (and backward) pass.")
    max_prompt_tokens: int = Field(1024, ge=1, description="Longer prompts are an error.")
    device: str = Field("auto", description="Device of both models: auto, cpu, cuda or cuda:N.")


class DistillRunSection(RunSection):
    """How long to distil, and where the results go. A generation is one update."""

    reverse_kl_prompts: int = Field(
        64, ge=0, description="Held-out problems for the reverse KL to the teacher; 0 leaves it out."
    )


class DistillConfig(Section):
    """A distillation: everything that `esalign distill` needs to know."""

    student: StudentSection
    teacher: TeacherSection
    behaviour: BehaviourSection = BehaviourSection()
    loss: LossSection = LossSection()
    training: TrainingSection = TrainingSection()
    data: DataSection
    rewards: tuple[RewardSection, ...] = Field((), description="None: the student is judged by the reverse KL alone.")
    scoring: ScoringSection = ScoringSection()
    sampling: SamplingSection = SamplingSection(temperature=1.0)
    probe: ProbeSection | None = None
    run: DistillRunSection = DistillRunSection()

    def describe(self) -> str:
        """Return '64 problems x 4 rollouts each, trust-region for 25 updates'."""
        behaviour = self.behaviour
        span = "" if behaviour.name == "student" or behaviour.steps is None else f" for {behaviour.steps} updates"
        return f"{self.training.prompts} problems x {self.training.samples} rollouts each, {behaviour.name}{span}"

    @model_validator(mode="after")
    def _scores_in_its_own_machine(self) -> "DistillConfig":
        if self.scoring.place == "cluster":
            raise ValueError("scoring.place is cluster, but a distillation has none: set scoring.place=run")
        return self

    @model_validator(mode="after")
    def _warm_up_fits(self) -> "DistillConfig":
        steps, updates = self.behaviour.steps, self.run.generations
        if self.behaviour.name != "student" and steps is not None and steps > updates:
            raise ValueError(
                f"behaviour.steps is {steps}, but the run has only {updates} updates, so its warm-up would never end: "
                "lower it, raise run.generations, or set it to null for a behaviour that stays"
            )
        return self
