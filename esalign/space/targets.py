"""Which linear layers of a model are meant by names, as PEFT's ``target_modules`` means them."""

import re
from collections.abc import Sequence
from typing import Any

from esalign.errors import ConfigError
from esalign.registry import did_you_mean

ALL_LINEAR = "all-linear"
_BLOCK = re.compile(r"\.(\d+)\.")


def linear_layers(model: Any) -> dict[str, bool]:
    """Return the full names of a transformers model's linear layers but its output layer.

    Each with whether its matrix is stored transposed, as GPT-2's are.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def is_attention(name: str) -> bool:
    """Say whether a layer is part of the attention.

    >>> is_attention("model.layers.0.self_attn.q_proj"), is_attention("model.layers.0.mlp.up_proj")
    (True, False)
    """
    return any("attn" in part or "attention" in part for part in name.lower().split(".")[:-1])


def is_called(name: str, target: str) -> bool:
    """Say whether a layer is one of those that PEFT finds under a name: its own, or the end of its own."""
    return name == target or name.endswith(f".{target}")


def last_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the last parts of layers' names, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def choose_layers(
    names: Sequence[str], targets: str | Sequence[str] | None, layers: Sequence[int] | None, *, label: str
) -> list[str]:
    """Return the layers that targets and block numbers name, in their order.

    Args:
        names: all linear layers.
        targets: ends of names; ``all-linear``; None for the attention's.
        layers: numbers of the blocks; None for all.
        label: the model, for messages.

    Raises:
        ConfigError: a target or a block that is not there.
    """
    wanted = [targets] if isinstance(targets, str) else targets
    known = [*sorted(last_parts(names)), ALL_LINEAR]
    if wanted == [ALL_LINEAR]:
        chosen = list(names)
    elif wanted is None:
        chosen = [name for name in names if is_attention(name)]
    else:
        for target in wanted:
            if not any(is_called(name, target) for name in names):
                raise ConfigError(
                    f"{label} has no linear layer {target!r}{did_you_mean(target, known)}; targets: {', '.join(known)}"
                )
        chosen = [name for name in names if any(is_called(name, target) for target in wanted)]
    blocks = {int(match[1]) for name in chosen if (match := _BLOCK.search(name))}
    if unknown := sorted(set(layers or ()) - blocks):
        raise ConfigError(
            f"{label} has no block {unknown[0]} with these targets; blocks: 0 to {max(blocks, default=-1)}"
        )
    if layers is not None:
        chosen = [name for name in chosen if (match := _BLOCK.search(name)) and int(match[1]) in layers]
    if not chosen:
        raise ConfigError(f"{label}: no layer to search in is left; name targets, of {', '.join(known)}")
    return chosen
