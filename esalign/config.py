"""The schema of a run, strict at every level, and its reading from YAML files and ``a.b=value`` overrides."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esalign.errors import ConfigError
from esalign.types import Sampling

EMBEDDED = "embedded"
"""As a model's or adapter's path: the one that is shipped with esalign."""

SURROGATE_DEFAULTS = {"prompts": 48, "samples": 4}
"""What differs from the defaults of `FitnessSection` for the surrogate, which generates with the mean alone."""

C = TypeVar("C", bound="Section")


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelSection(Section):
    """The base model and the adapter whose singular values are searched."""

    path: str = Field(description="Base model: a Hugging Face id, a local folder, a GGUF file, or 'embedded'.")
    adapter: str = Field(description="LoRA adapter to start from: PEFT folder or hub id, GGUF file, or 'embedded'.")
    fraction: float = Field(1.0, gt=0, le=1, description="Share of each factor's singular values that is searched.")


class BackendSection(Section):
    """The inference engine."""

    name: str = Field("torch", description="Engine: torch, vllm, llama-cpp, or a plug-in's name.")
    dtype: str = Field("auto", description="Compute type: auto (the model's own), float32, bfloat16 or float16.")
    device: str = Field("auto", description="Device: auto, cpu, cuda or cuda:N.")
    options: dict[str, Any] = Field({}, description="Options of the engine itself; see its page in docs/.")


class SourceSection(Section):
    """Where problems come from."""

    source: str = Field(
        description="Hugging Face data set id or folder, a jsonl, json, parquet or csv file, or reasoning-gym:<task>."
    )
    config: str | None = Field(None, description="Configuration (subset) of the Hugging Face data set.")
    split: str | None = Field(None, description="Split of the Hugging Face data set; none takes 'train'.")
    options: dict[str, Any] = Field({}, description="Options of the reasoning-gym task.")
    columns: dict[str, str] = Field({}, description="Names of columns, as {prompt: theirs, answer: theirs}.")
    template: str | None = Field(None, description="Text around the prompt, e.g. '{prompt}\\nThink step by step.'")
    system_prompt: str | None = Field(None, description="System message; makes chat messages of text prompts.")


class DataSection(SourceSection):
    """Problems to train on, to choose the best mean by, and to report on; the three never overlap."""

    train_size: int | None = Field(None, ge=1, description="Training problems; none takes all that are left.")
    validation_size: int = Field(256, ge=1, description="Problems that choose the best mean during the run.")
    test_size: int = Field(1000, ge=1, description="Problems read only for the start and the final result.")
    validation: SourceSection | None = Field(None, description="Separate source of the validation problems.")
    test: SourceSection | None = Field(None, description="Separate source of the test problems.")


class RewardSection(Section):
    """One reward."""

    name: str = Field(description="math, reasoning-gym, exact-match, regex-match, module:function or file.py:function.")
    weight: float = Field(1.0, description="Factor of this reward in the sum.")
    options: dict[str, Any] = Field({}, description="Options of the reward.")


class ScoringSection(Section):
    """How rewards are computed."""

    workers: int = Field(1, ge=0, description="Processes that score beside generation; 0 scores in the run's own.")
    timeout: float = Field(10.0, gt=0, description="Seconds that one answer's scoring may take (with workers).")


class SamplingSection(Section):
    """How answers are decoded during the search."""

    max_tokens: int = Field(256, ge=1, description="Most tokens of one answer.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus to draw from.")
    top_k: int = Field(0, ge=0, description="Number of tokens to draw from; 0 is all.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="Strings that end an answer.")

    def make(self, *, seed: int) -> Sampling:
        """Return the engine's sampling with a seed."""
        return Sampling(seed=seed, **self.model_dump())


class FitnessSection(Section):
    """What the optimiser maximises."""

    name: str = Field(
        "reward", description="reward: mean reward of what each candidate generates; surrogate: see docs/surrogate.md."
    )
    prompts: int = Field(
        100, ge=1, description="Problems per generation, the same for all its candidates; surrogate: 48 at a time."
    )
    samples: int = Field(
        1,
        ge=1,
        description="Answers per problem and candidate; above 1 needs temperature > 0. surrogate: 4 by the mean.",
    )
    options: dict[str, Any] = Field({}, description="Options of the fitness.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_surrogate(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("name") == "surrogate":
            return {**SURROGATE_DEFAULTS, **values}
        return values


class OptimizerSection(Section):
    """The evolution strategy."""

    name: str = Field("cma-es", description="cma-es, openai-es, random-search, nevergrad:<Name>, or a plug-in's name.")
    population: int = Field(24, ge=2, le=100_000, description="Candidates per generation.")
    sigma: float = Field(
        0.5, gt=0, le=1000, description="First step size, in units of each factor's RMS singular value."
    )
    options: dict[str, Any] = Field({}, description="Options of the optimiser.")


class ProbeSection(SourceSection):
    """An off-task probe: problems that the search does not see, as the measure of forgetting."""

    size: int = Field(256, ge=1, description="Number of problems.")
    rewards: tuple[RewardSection, ...] = Field(min_length=1, description="Rewards of the probe.")


class RunSection(Section):
    """How long to search, and where the results go."""

    name: str = Field("run", pattern=r"^\w[\w.-]*$", description="Name of the run's folder.")
    dir: str = Field("runs", description="Folder that holds the runs.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    generations: int = Field(50, ge=1, description="Generations to search.")
    evaluate_every: int = Field(5, ge=1, description="Generations between two validations of the mean.")
    patience: int | None = Field(None, ge=1, description="Stop after so many validations without a new best.")
    flat_limit: int = Field(5, ge=1, description="Stop after so many generations in which all candidates are equal.")
    max_minutes: float | None = Field(None, gt=0, description="Stop at the first generation that ends after this.")
    kl_prompts: int = Field(64, ge=0, description="Validation problems for the KL to the start; 0 leaves it out.")
    verify_prompts: int = Field(
        32, ge=1, description="Validation problems on which the saved adapter is compared with the engine."
    )
    tracker: Literal["none", "trackio", "wandb", "tensorboard"] = Field("none", description="Where to send metrics.")


class Experiment(Protocol):
    """What the configurations of all kinds of runs share: how they are judged, and where they lie."""

    @property
    def data(self) -> DataSection:
        """The problems."""

    @property
    def rewards(self) -> tuple[RewardSection, ...]:
        """What judges answers."""

    @property
    def scoring(self) -> ScoringSection:
        """How it does."""

    @property
    def sampling(self) -> SamplingSection:
        """How answers are decoded."""

    @property
    def probe(self) -> ProbeSection | None:
        """The off-task probe."""

    @property
    def run(self) -> RunSection:
        """Length and folder."""

    def describe(self) -> str:
        """Say in a few words what a generation does."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return all keys and values."""


class RunConfig(Section):
    """A run: everything that `esalign run` needs to know."""

    model: ModelSection
    backend: BackendSection = BackendSection()
    data: DataSection
    rewards: tuple[RewardSection, ...] = Field(min_length=1)
    scoring: ScoringSection = ScoringSection()
    sampling: SamplingSection = SamplingSection()
    fitness: FitnessSection = FitnessSection()
    optimizer: OptimizerSection = OptimizerSection()
    probe: ProbeSection | None = None
    run: RunSection = RunSection()

    def describe(self) -> str:
        """Return '24 candidates x 100 problems each, cma-es on torch'."""
        samples = f" x {self.fitness.samples} answers" if self.fitness.samples > 1 else ""
        who = "of the mean" if self.fitness.name == "surrogate" else "each"
        return (
            f"{self.optimizer.population} candidates x {self.fitness.prompts} problems{samples} {who}, "
            f"{self.optimizer.name} on {self.backend.name}"
        )

    @model_validator(mode="after")
    def _samples_differ(self) -> "RunConfig":
        if self.fitness.name == "reward" and self.fitness.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"fitness.samples is {self.fitness.samples} with greedy decoding, where all samples are equal: "
                "set sampling.temperature above 0, or fitness.samples to 1"
            )
        return self


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = (), *, schema: type[C]) -> C:
    """Read YAML files, the later over the earlier, then ``a.b=value`` overrides, into a schema.

    Raises:
        ConfigError: naming the file, the path of the key, and what was expected.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = merge(merged, read_yaml(file))
    for override in overrides:
        merged = merge(merged, parse_override(override))
    # A section whose keys are all commented out reads as null, and means its defaults.
    sections = {key: value for key, value in merged.items() if value is not None}
    try:
        return schema.model_validate(sections)
    except ValidationError as error:
        source = ", ".join(str(file) for file in files) or "configuration"
        raise ConfigError(f"{source}: {describe(error, schema)}") from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping."""
    import yaml

    try:
        content = _load_yaml(Path(file).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"no configuration file '{file}': write one with `esalign init`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{file}': {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"'{file}' is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{file}' holds a {type(content).__name__}, expected sections such as 'model:' and 'data:'")
    return content


def _load_yaml(text: str) -> Any:
    """Read YAML; a key that is given twice, of which YAML readers silently keep the last, is refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key.value, str):  # a list or mapping as a key, which the reader itself refuses
                    continue
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    # YAML 1.1 takes 1e-3, without a point, for text.
    number = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return yaml.load(text, Loader)  # noqa: S506  (a safe loader)


def parse_override(text: str) -> dict[str, Any]:
    """Read ``a.b=value``, the value as YAML, into nested dictionaries."""
    import yaml

    key, sign, value = text.partition("=")
    parts = key.split(".")
    if not sign or not all(parts):
        raise ConfigError(f"cannot read the override {text!r}, expected section.key=value")
    try:
        nested: Any = _load_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(f"the value of the override {text!r} is not valid YAML") from None
    for part in reversed(parts):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return base with top laid over it; mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def describe(error: ValidationError, schema: type[Section]) -> str:
    """Return the first mistake in one line: the key's path, what was got, what was expected; and how many follow."""
    # A mistyped key is often the cause of a missing one, so it is told first.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(schema, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        message = f"unknown key '{path}', {hint}"
    elif first["type"] == "missing":
        message = f"'{path}' is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        text = text[0].lower() + text[1:]
        message = f"'{path}' is {first['input']!r}, {text}" if path else text
    more = len(details) - 1
    return message + (f" (and {more} more mistake{'s' if more > 1 else ''})" if more else "")


def _keys_at(schema: type[Section], path: Sequence[str | int]) -> list[str]:
    """Return the keys that the section at a path of the schema knows."""
    section: type[Section] = schema
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """Return the section inside an annotation such as ``ProbeSection | None`` or ``tuple[RewardSection, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None
