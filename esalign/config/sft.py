"""The schema of a warm start: everything that `esalign sft` needs to know."""

from typing import Literal

from pydantic import Field, model_validator

from esalign.config.sections import Place, Section, Source, Targets


class SftData(Source):
    """Demonstrations: problems with the answers to learn."""

    size: int | None = Field(None, ge=1, description="Number of demonstrations; none takes all.")
    answer: str = Field("answer", description="Column that holds the answer to learn; of messages, the last turn is.")


class SftOptions(Section):
    """How the adapter is trained."""

    rank: int = Field(8, ge=1, description="Rank of the adapter.")
    alpha: int | None = Field(None, ge=1, description="The update is scaled by alpha / rank; none: twice the rank.")
    target_modules: Targets | None = Field(
        None,
        description="Linear layers to adapt, by the ends of their names, or all-linear; none: those of the attention.",
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak of a cosine schedule with a short warm-up.")
    epochs: float = Field(3.0, gt=0, description="Passes over the demonstrations.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps, in place of epochs.")
    batch_size: int = Field(16, ge=1, description="Demonstrations per step.")
    gradient_accumulation: int = Field(
        1, ge=1, description="Parts into which a step is cut to save memory; divides batch_size."
    )
    max_length: int = Field(1024, ge=8, description="Longest prompt plus answer, in tokens.")
    seed: int = Field(0, ge=0, description="Seed of the adapter's start and of the order.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the base model.")
    device: Literal["cpu", "cuda"] | None = Field(None, description="cpu or cuda; none chooses.")

    @model_validator(mode="after")
    def _steps_can_be_cut(self) -> "SftOptions":
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"gradient_accumulation is {self.gradient_accumulation}, expected a divisor of batch_size "
                f"({self.batch_size})"
            )
        return self


class SftConfig(SftOptions):
    """A warm start: a LoRA adapter from a few demonstrations."""

    model: Place = Field(description="Base model: a Hugging Face id, a local folder, or 'embedded'.")
    out: Place = Field(description="Folder of the adapter to write.")
    data: SftData
