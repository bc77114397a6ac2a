"""The warm start: a LoRA adapter from a few demonstrations, by TRL."""

from esalign.config.sft import SftOptions
from esalign.sft.training import SftSummary, train_sft

__all__ = ["SftOptions", "SftSummary", "train_sft"]
