"""The schema of a run, strict at every level, and its reading from YAML files and ``a.b=value`` overrides."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from esalign.files import expand_home
from esalign.types import Sampling

LONGEST_NAME = 200  # bytes of a run's name: file systems take 255, and a number may be appended


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


Place = Annotated[str, AfterValidator(expand_home)]
"""A file or folder, or a name that may be one: ``~`` is the user's home."""

Targets = Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"]
"""Layers of a new adapter: the ends of their names, or all linear ones."""


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section inside an annotation such as ``ProbeSection | None`` or ``tuple[RewardSection, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in getattr(annotation, "__args__", ()) if (found := section_in(inner))), None)


class BackendSection(Section):
    """The inference engine."""

    name: str = Field("torch", description="Engine: torch, vllm, llama-cpp, or a plug-in's name.")
    dtype: str = Field("auto", description="Compute type: auto (the model's own), float32, bfloat16 or float16.")
    device: str = Field("auto", description="Device: auto, cpu, cuda or cuda:N.")
    self_test: float = Field(
        6.0,
        ge=0,
        description="Compare log-probabilities of a few tokens with transformers at the start, if the base model's "
        "weights take at most so many GB; 0 never does.",
    )
    options: dict[str, Any] = Field({}, description="Options of the engine itself; see its page in docs/.")


class Source(Section):
    """Where problems come from, and how a row becomes one."""

    source: Place = Field(
        description="Hugging Face data set id or folder, a jsonl, json, parquet or csv file, reasoning-gym:<task>, or "
        "instructions, which are generated for the reward ifeval."
    )
    config: str | None = Field(None, description="Configuration (subset) of the Hugging Face data set.")
    split: str | None = Field(None, description="Split of the Hugging Face data set; none takes 'train'.")
    options: dict[str, Any] = Field({}, description="Options of what generates problems.")
    columns: dict[str, str] = Field({}, description="Names of columns, as {prompt: theirs, answer: theirs}.")
    template: str | None = Field(None, description="Text around the prompt, e.g. '{prompt}\\nThink step by step.'")
    system_prompt: str | None = Field(None, description="System message; makes chat messages of text prompts.")
    chat: bool = Field(False, description="Make chat messages of text prompts, as a model that is tuned to chat wants.")


class DataSection(Source):
    """Problems to train on, to choose the best mean by, and to report on; the three never overlap."""

    train_size: int | None = Field(None, ge=1, description="Training problems; none takes all that are left.")
    validation_size: int = Field(256, ge=1, description="Problems that choose the best mean during the run.")
    test_size: int = Field(1000, ge=1, description="Problems read only for the start and the final result.")
    validation: Source | None = Field(
        None, description="Separate source of the validation problems; what it does not name is as in data."
    )
    test: Source | None = Field(
        None, description="Separate source of the test problems; what it does not name is as in data."
    )
    overlap: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Problems of the main source that a separate source of validation or test problems has, too: "
        "refuse to start, or drop them from the main one.",
    )
    too_long: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Problems whose prompt and sampling.max_tokens do not fit the model's context: refuse to start, or "
        "drop them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, value: Any) -> Any:
        """Give sources of their own what they do not name; config, split and options only where it is one source.

        Columns and options are taken one by one; an empty mapping takes none.
        """
        if not isinstance(value, Mapping):
            return value
        reading, choosing = ("columns", "template", "system_prompt", "chat"), ("source", "config", "split", "options")
        filled = dict(value)
        for name in ("validation", "test"):
            own = value.get(name)
            if isinstance(own, Mapping):
                same = own.get("source", value.get("source")) == value.get("source")
                inherited = (*reading, *choosing) if same else reading
                below = {key: value[key] for key in inherited if key in value}
                filled[name] = {**below, **{key: _laid_over(key, below.get(key), held) for key, held in own.items()}}
        return filled


def _laid_over(key: str, below: Any, own: Any) -> Any:
    """Return what a source of its own has at a key, over what data has there."""
    mappings = key in ("columns", "options") and isinstance(below, Mapping) and isinstance(own, Mapping)
    return {**below, **own} if mappings and own else own


class RewardSection(Section):
    """One reward; a name alone is one without options."""

    name: str = Field(
        description="math, ifeval, reasoning-gym, exact-match, regex-match, module:function or file.py:function."
    )
    weight: float = Field(1.0, description="Factor of this reward in the sum.")
    options: dict[str, Any] = Field({}, description="Options of the reward.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Rewards = Annotated[tuple[RewardSection, ...], BeforeValidator(_as_list), Field(min_length=1)]
"""Rewards; one alone needs no list."""


class ScoringSection(Section):
    """How rewards are computed."""

    place: Literal["run", "cluster"] = Field(
        "run", description="Where: run is the run's own machine, cluster the machines of cluster; see docs/cluster.md."
    )
    workers: int = Field(1, ge=0, description="Processes that score beside generation; 0 scores in the run's own.")
    timeout: float = Field(10.0, gt=0, description="Seconds that one completion's scoring may take.")

    @model_validator(mode="after")
    def _others_need_processes(self) -> "ScoringSection":
        if self.place == "cluster" and not self.workers:
            raise ValueError("workers is 0, which scores in the run's own process: expected at least 1 on a cluster")
        return self


class SamplingSection(Section):
    """How completions are decoded during the search."""

    max_tokens: int = Field(256, ge=1, description="Most tokens of one completion.")
    temperature: float = Field(
        0.0,
        ge=0,
        description="0 is greedy; the fitness reward samples a quarter of its problems even so (options: sampled).",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus to draw from.")
    top_k: int = Field(0, ge=0, description="Number of tokens to draw from; 0 is all.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="Strings that end a completion.")

    def make(self, *, seed: int) -> Sampling:
        """Return the engine's sampling with a seed."""
        return Sampling(seed=seed, **self.model_dump())


class ProbeSection(Source):
    """An off-task probe: problems that the search does not see, as the measure of forgetting."""

    size: int = Field(256, ge=1, description="Number of problems.")
    rewards: Rewards = Field(description="Rewards of the probe.")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"expected the name of a folder: letters, digits, '_', '-' and '.', beginning with one of the first three, "
            f"at most {LONGEST_NAME} bytes; run.dir says where it lies"
        )
    return name


class RunSection(Section):
    """How long a run goes on, how it is judged, and where the results go."""

    name: Annotated[str, AfterValidator(_check_name)] = Field("run", description="Name of the run's folder.")
    dir: Place = Field("runs", description="Folder that holds the runs.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    generations: int = Field(50, ge=1, description="Generations of a search, or updates of a distillation.")
    evaluate_every: int = Field(5, ge=1, description="Generations between two validations.")
    checkpoint_every: int = Field(1, ge=1, description="Generations between two checkpoints.")
    select_by: str | None = Field(
        None, description="Measure that chooses the best: reward or minus-reverse-kl; none: what is maximised."
    )
    patience: int | None = Field(None, ge=1, description="Stop after so many validations without a new best.")
    max_minutes: float | None = Field(None, gt=0, description="Stop at the first generation that ends after this.")
    max_generated_tokens: int | None = Field(
        None, ge=1, description="Stop at the first generation that ends after so many generated tokens."
    )
    verify_prompts: int = Field(
        32, ge=1, description="Validation problems on which the saved adapter is compared with the engine."
    )
    tracker: Literal["none", "trackio", "wandb", "tensorboard"] = Field("none", description="Where to send metrics.")
