"""What `esalign sft` does."""

from collections.abc import Callable

from esalign.assets import model_path
from esalign.commands.hub import find_hub
from esalign.config.sft import SftConfig
from esalign.data import load_dataset
from esalign.sft.training import SftSummary, train_sft


def warm_start(config: SftConfig, on_step: Callable[[int, float], None] | None = None) -> SftSummary:
    """Train the LoRA adapter that a search starts from."""
    find_hub(config)
    data = config.data
    examples = load_dataset(data, size=data.size, seed=config.seed).examples
    return train_sft(
        model_path(config.model),
        examples,
        completion_column=data.answer,
        out=config.out,
        options=config,
        on_step=on_step,
    )
