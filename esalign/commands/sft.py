"""What `esalign sft` does."""

from collections.abc import Callable
from dataclasses import replace

from esalign.assets import model_path
from esalign.commands.hub import find_hub
from esalign.config.sft import SftConfig
from esalign.sft.demonstrations import load_demonstrations
from esalign.sft.training import SftSummary, train_sft


def warm_start(config: SftConfig, on_step: Callable[[int, float], None] | None = None) -> SftSummary:
    """Train the LoRA adapter that a search starts from."""
    find_hub(config)
    data = load_demonstrations(config.data, seed=config.seed)
    summary = train_sft(
        model_path(config.model),
        data.examples,
        completion_column=config.data.answer,
        out=config.out,
        options=config,
        on_step=on_step,
    )
    return replace(summary, notes=(*data.alias_notes, *data.notes, *summary.notes))
