"""The layers of a transformers model that an adapter means, and whether peft means the same ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esalign.errors import BackendError
from esalign.protocols import Space
from esalign.space import SvdModule
from esalign.space.imports import import_peft


def find_adapted(model: Any, space: Space, label: str) -> list[tuple[str, Any]]:
    """Return the name and the layer in a model of each module of a space, in their order.

    Args:
        model: of transformers; on the meta device will do.
        space: names the layers as its adapter does.
        label: of the model, for messages.

    Raises:
        BackendError: a layer is missing, is not linear, or has another shape than the adapter's factors; or peft takes
            it for another, as it does with some of mixtures of experts.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    names = [module.name if module.name in known else _present_name(model, module.name) for module in space.modules]
    for name, module in zip(names, space.modules, strict=True):
        _check_layer(known.get(name), module, label)
    _check_peft_agrees(model.config, space, names, label)
    return [(name, known[name]) for name in names]


def _present_name(model: Any, name: str) -> str:
    """Return a layer's name in the installed transformers, which has renamed some, mostly of mixtures of experts."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamed = f"{name}.weight"
    for transform in get_model_conversion_mapping(model) or ():
        if isinstance(transform, WeightRenaming):
            renamed, _ = transform.rename_source_key(renamed)
    return renamed.removesuffix(".weight")


def _check_layer(layer: Any, module: SvdModule, label: str) -> None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if layer is None:
        raise BackendError(
            f"the adapter adapts {module.name!r}, which {label} does not have: "
            "use the model that the adapter was trained on"
        )
    if not isinstance(layer, nn.Linear | Conv1D):
        raise BackendError(
            f"the adapter adapts {module.name!r}, which in {label} is a {type(layer).__name__}, "
            "expected a linear layer: train the adapter on linear layers only"
        )
    linear = isinstance(layer, nn.Linear)
    shape = (layer.in_features, layer.out_features) if linear else tuple(layer.weight.shape)  # (in, out)
    expected = (module.a.Vt.shape[1], module.b.U.shape[0])
    if shape != expected:
        raise BackendError(
            f"the adapter's factors for {module.name!r} map {expected[0]} to {expected[1]} features, but the layer of "
            f"{label} maps {shape[0]} to {shape[1]}: use the model that the adapter was trained on"
        )


def _check_peft_agrees(model_config: Any, space: Space, names: Sequence[str], label: str) -> None:
    """Refuse an adapter whose layers peft takes for others: for mixtures of experts it rewrites what is targeted."""
    from esalign.space.skeleton import make_skeleton

    skeleton = make_skeleton(model_config)
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
    peft = import_peft()
    settings = {key: value for key, value in config.items() if key in peft.LoraConfig.__dataclass_fields__}
    try:
        peft.inject_adapter_in_model(peft.LoraConfig(**settings), skeleton)
    except ValueError:  # as peft says that it cannot convert such targets
        return set()
    return {
        name
        for name, module in skeleton.named_modules()
        if type(module).__name__ != "ParamWrapper" and isinstance(module, peft.tuners.lora.LoraLayer)
    }
