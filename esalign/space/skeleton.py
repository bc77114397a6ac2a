"""Causal language models of transformers: their factory, and a model without its weights."""

from importlib import import_module
from typing import Any


def causal_lm() -> Any:
    """Return ``transformers.AutoModelForCausalLM``, imported without scikit-learn.

    Where that is installed, transformers imports it, with pandas, for assisted decoding, which no engine does: 100 MiB.
    """
    import transformers

    utils: Any = transformers.utils
    found = utils.is_sklearn_available
    utils.is_sklearn_available = lambda: False
    try:
        import_module("transformers.generation.candidate_generator")  # keeps the answer that it is given here
    finally:
        utils.is_sklearn_available = found
    return transformers.AutoModelForCausalLM


def make_skeleton(config: Any) -> Any:
    """Return the model of a transformers configuration on torch's meta device: its layers and shapes, no weights."""
    import torch

    with torch.device("meta"):
        return causal_lm().from_config(config)
