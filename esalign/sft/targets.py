"""Which layers of a model an adapter is trained on."""

from collections.abc import Sequence
from typing import Any

from esalign.errors import AdapterError
from esalign.space.targets import ALL_LINEAR, is_attention, is_called, last_parts, linear_layers


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
    names = list(linear_layers(model))
    own = ", ".join(last_parts(names))
    if wanted is None or wanted == ALL_LINEAR or ALL_LINEAR in wanted:
        chosen = last_parts([name for name in names if wanted is not None or is_attention(name)])
        if not chosen:
            raise AdapterError(f"{label} has no linear layer that is known as attention: name target_modules of {own}")
        return chosen, ()
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    if head is not None and any(is_called(head, name) for name in wanted):
        raise AdapterError(
            f"target_modules names {head}, the output layer of {label}, which no engine adapts: leave it out; the "
            f"model has {own}"
        )
    found = tuple(name for name in wanted if any(is_called(full, name) for full in names))
    if not found:
        listed = ", ".join(wanted)
        raise AdapterError(f"{label} has none of the target modules {listed}: it has {own}, or {ALL_LINEAR}")
    return found, tuple(name for name in wanted if name not in found)
