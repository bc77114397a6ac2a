"""transformers without what no engine uses, and its models without their weights."""

from contextlib import suppress
from importlib import import_module
from typing import Any

# What transformers imports where it is installed: by the question that it asks, and the module that asks it.
_UNUSED = {
    "is_sklearn_available": "transformers.generation.candidate_generator",  # assisted decoding; brings pandas too
    "is_scipy_available": "transformers.loss.loss_utils",  # losses of object detection
}


def import_transformers() -> Any:
    """Return transformers, whose models are imported without what no engine uses: 135 MiB.

    It must come before any of its Auto classes is used, as these import the models' code. In this process assisted
    decoding then does without scikit-learn, and the losses of object detection fail.
    """
    import transformers

    utils: Any = transformers.utils
    for question, module in _UNUSED.items():
        answer = getattr(utils, question, None)
        if answer is None:  # another version of transformers, which costs memory alone
            continue
        setattr(utils, question, lambda: False)
        try:
            with suppress(ModuleNotFoundError):
                import_module(module)  # which keeps the answer that it is given here
        finally:
            setattr(utils, question, answer)
    return transformers


def make_skeleton(config: Any) -> Any:
    """Return the model of a transformers configuration on torch's meta device: its layers and shapes, no weights."""
    import torch

    with torch.device("meta"):
        return import_transformers().AutoModelForCausalLM.from_config(config)
