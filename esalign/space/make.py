"""Making a search space by name."""

from typing import Any

from esalign.errors import ConfigError
from esalign.protocols import Space
from esalign.registry import SPACES, check_options, make_plug
from esalign.space.tied import TiedSpace


def make_space(
    name: str,
    /,
    *,
    model: str | None = None,
    adapter: str | None = None,
    tie: int | None = None,
    tie_over: str = "all",
    tie_seed: int = 0,
    **options: Any,
) -> Space:
    """Make a search space by name.

    Args:
        name: ``svd-lora``, ``base-svd``, or what an installed plug-in offers in the entry-point group
            ``esalign.spaces``.
        model: the base model: a Hugging Face id, a folder or a GGUF file.
        adapter: the LoRA adapter to start from: a PEFT folder or hub id, or a GGUF file.
        tie: move the space by so few numbers, see `esalign.space.TiedSpace`; None by all of its own.
        tie_over: ``all``, or ``layers`` for ``tie`` numbers in each adapted layer.
        tie_seed: seed of the map from few numbers to all.
        **options: the space's own.

    Raises:
        ConfigError: an unknown name or option, or one that is out of range.
        AdapterError: the space refuses the adapter.
    """
    user = f"space {name!r}"
    check_options(user, make_space, {"tie": tie, "tie_over": tie_over, "tie_seed": tie_seed}, reserved=())
    if tie is None and (tie_over, tie_seed) != ("all", 0):
        raise ConfigError(f"{user}: tie_over and tie_seed mean nothing without tie: set it too, or leave them out")
    space: Space = make_plug(SPACES, name, {"model": model, "adapter": adapter}, options)
    if tie is None:
        return space
    return TiedSpace(space, tie=tie, over=tie_over, seed=tie_seed)
