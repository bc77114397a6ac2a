"""What a dry run finds out."""

from collections.abc import Mapping
from dataclasses import dataclass

from esalign.config.run import RunConfig
from esalign.data import Note
from esalign.run.first_step import FirstStep
from esalign.types import Sample


@dataclass(frozen=True)
class Plan:
    """What a run would do, from one real batch.

    Args:
        config: the configuration, defaults of the plugs filled in.
        dim: length of the search vector.
        problems: number of training, validation and test problems.
        resolution: the smallest gain on the validation problems that is no noise (95 %), if pairing helps nothing.
        tokens: generated tokens in all, from the mean length of the batch.
        seconds: search time in all, from the batch's speed.
        columns: role -> the data's column that was taken for it without being told so.
        notes: what else was dropped, changed, cut or assumed of the data.
        concerns: what should worry the user.
        step: what the first step does to completions.
        reliability: the share of signal in the variance between the candidates of the batch, in [0, 1]; None where the
            fitness does not tell, or too little is known.
        samples: completions of the first population with their rewards.
    """

    config: RunConfig
    dim: int
    problems: tuple[int, int, int]
    resolution: float
    tokens: int
    seconds: float
    columns: Mapping[str, str]
    notes: tuple[Note, ...]
    concerns: tuple[str, ...]
    step: FirstStep
    reliability: float | None
    samples: tuple[Sample, ...]
