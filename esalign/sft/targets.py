"""Which layers of a model an adapter is trained on."""

from collections.abc import Iterator, Sequence
from typing import Any

from esalign.errors import AdapterError

ALL = "all-linear"


def choose_targets(
    model: Any, wanted: Sequence[str] | str | None, label: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ends of the names of the layers to adapt, and the names that were asked for and are not there.

    Args:
        model: a causal language model of transformers.
        wanted: ends of names; ``all-linear``: all linear layers but the output layer; None: those of the attention.
        label: what to call the model in errors.

    Raises:
        AdapterError: none of them is a linear layer of the model, or one is its output layer.
    """
    names = list(_linear_layers(model))
    own = tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))
    if wanted is None or wanted == ALL or ALL in wanted:
        inside = [name for name in names if wanted is not None or _is_attention(name)]
        chosen = tuple(dict.fromkeys(name.rpartition(".")[2] for name in inside))
        if not chosen:
            raise AdapterError(f"{label} has no linear layer that is known as attention: name target_modules of {own}")
        return chosen, ()
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    if head is not None and any(_ends(head, name) for name in wanted):
        raise AdapterError(
            f"target_modules names {head}, the output layer of {label}, which no engine adapts: leave it out; the "
            f"model has {', '.join(own)}"
        )
    found = tuple(name for name in wanted if any(_ends(full, name) for full in names))
    if not found:
        listed = ", ".join(wanted)
        raise AdapterError(f"{label} has none of the target modules {listed}: it has {', '.join(own)}, or all-linear")
    return found, tuple(name for name in wanted if name not in found)


def _linear_layers(model: Any) -> Iterator[str]:
    """Yield the full names of all linear layers but the output layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
            yield name


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.split(".")[:-1])


def _ends(full: str, name: str) -> bool:
    """Say whether a layer is one of those that PEFT finds under a name."""
    return full == name or full.endswith(f".{name}")
