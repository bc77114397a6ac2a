"""Quantising a loaded model, and refusing what cannot be decoded in batches."""

from typing import Any, Literal

import torch
from torch import nn

from esalign.engines.loading import LoadedModel, quiet
from esalign.errors import BackendError, MissingPackageError

GROUP_SIZE = 32
SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})


def quantize(loaded: LoadedModel, kind: Literal["int8", "int4"]) -> None:
    """Hold the weights of all linear layers but the head in INT8 (per channel) or INT4 (groups of 32), by torchao.

    Raises:
        BackendError: a layer's width is no multiple of the group size.
        MissingPackageError: torchao is not installed.
    """
    model = loaded.model
    with quiet():
        try:
            from torchao import quantization as ao
        except ImportError:
            raise MissingPackageError(f"quantization '{kind}'", "torchao", "quantize") from None

        head = model.get_output_embeddings()
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        if kind == "int8":
            config = ao.Int8WeightOnlyConfig()
        else:
            _check_groups(layers, loaded.label)
            config = ao.IntxWeightOnlyConfig(vars(torch)["int4"], ao.PerGroup(GROUP_SIZE))
        ao.quantize_(model, config, filter_fn=lambda _, name: name in layers)


def _check_groups(layers: dict[str, nn.Linear], label: str) -> None:
    for name, layer in layers.items():
        if layer.in_features % GROUP_SIZE:
            raise BackendError(
                f"quantization 'int4' needs layers whose width is a multiple of {GROUP_SIZE}, but {name!r} of "
                f"{label} has {layer.in_features}: use 'int8'"
            )


def refuse_unsupported(loaded: LoadedModel) -> None:
    """Refuse recurrent layers: what they remember of finished rows cannot be taken out of the cache.

    Raises:
        BackendError: such layers, or an encoder-decoder.
    """
    config = loaded.model.config.get_text_config()
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in SUPPORTED_LAYERS:
            raise BackendError(f"{loaded.label} has layers of type {kind!r}, which backend 'torch' does not support")
    if getattr(loaded.model, "_is_stateful", False):  # as transformers marks those without a list of layers
        kind = type(loaded.model).__name__
        raise BackendError(f"{loaded.label} is recurrent ({kind}), which backend 'torch' does not support")
    if getattr(config, "is_encoder_decoder", False):
        raise BackendError(f"{loaded.label} is an encoder-decoder, expected a causal language model")


def turns_by_length(config: Any) -> bool:
    """Tell whether a model's rotary positions depend on how long the text of a pass is, as LongRoPE's do.

    Args:
        config: of the text model; its parameters of positions may differ by the kind of layer.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *parameters.values()]
    return any(isinstance(kind, dict) and kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds)
