"""What `esalign sft` does."""

from collections.abc import Callable

from esalign.assets import model_path
from esalign.commands.build import make_source
from esalign.config.sft import SftConfig
from esalign.data import load_dataset
from esalign.sft.training import SftOptions, SftSummary, train_sft


def warm_start(config: SftConfig, on_step: Callable[[int, float], None] | None = None) -> SftSummary:
    """Train the LoRA adapter that a search starts from."""
    data = config.data
    examples = load_dataset(make_source(data), size=data.size, seed=config.seed).examples
    options = config.model_dump(exclude={"model", "out", "data"})
    return train_sft(
        model_path(config.model),
        examples,
        completion_column=data.answer,
        out=config.out,
        options=SftOptions(**options),
        on_step=on_step,
    )
