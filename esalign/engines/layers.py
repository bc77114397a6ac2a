"""The layers of a transformers model that an adapter means, and whether peft means the same ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esalign.errors import BackendError
from esalign.protocols import Space


def present_name(model: Any, name: str) -> str:
    """Return a layer's name in the installed transformers, which has renamed some, those of mixtures of experts mostly.

    Args:
        model: a transformers model; on the meta device will do.
        name: the layer's name as an adapter has it.
    """
    if name in dict(model.named_modules()):
        return name
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamed = f"{name}.weight"
    for transform in get_model_conversion_mapping(model) or ():
        if isinstance(transform, WeightRenaming):
            renamed, _ = transform.rename_source_key(renamed)
    return renamed.removesuffix(".weight")


def check_peft_agrees(space: Space, model_config: Any, names: Sequence[str], label: str) -> None:
    """Refuse an adapter whose layers peft takes for others: for mixtures of experts it rewrites what is targeted.

    Args:
        space: gives the adapter's configuration.
        model_config: of the model, in transformers.
        names: the adapted layers' names in the model.
        label: of the model, for messages.

    Raises:
        BackendError: peft adapts something else.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model_config)
    if not any(name.endswith(".experts") for name, _ in skeleton.named_modules()):
        return
    found = _adapted_by_peft(skeleton, space.fold(np.zeros(space.dim)).config)
    missed = [name for name in names if name not in found]
    if missed:
        raise BackendError(
            f"the adapter adapts {missed[0]!r} of {label}, which peft takes for a part of the experts and would not "
            "adapt: train it on other layers, such as those of attention"
        )


def _adapted_by_peft(skeleton: Any, config: Mapping[str, Any]) -> set[str]:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    settings = {key: value for key, value in config.items() if key in LoraConfig.__dataclass_fields__}
    try:
        inject_adapter_in_model(LoraConfig(**settings), skeleton)
    except ValueError:  # as peft says that it cannot convert such targets
        return set()
    return {
        name
        for name, module in skeleton.named_modules()
        if type(module).__name__ != "ParamWrapper" and isinstance(module, LoraLayer)
    }
