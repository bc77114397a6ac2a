"""Loading a model and its tokenizer from a folder or the Hugging Face hub, and quantising it."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from esalign.errors import BackendError, MissingPackageError

DTYPES = ("float32", "bfloat16", "float16", "auto")
GROUP_SIZE = 32
SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})


def load_model(
    label: str,
    *,
    dtype: str,
    device: torch.device,
    quantization: Literal["int8", "int4"] | None,
    trust_remote_code: bool,
    revision: str | None,
    attn_implementation: str | None,
) -> tuple[Any, Any]:
    """Return the model, ready for inference on its device, and its tokenizer.

    Raises:
        BackendError: either cannot be loaded, or the model has layers that keep another state than keys and values.
        MissingPackageError: quantisation needs torchao.
    """
    common = {"trust_remote_code": trust_remote_code, "revision": revision}
    model: Any
    info: Any
    with quiet_transformers(), quiet_torchao(), _one_line_errors(label):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(label, **common)
        factory: Any = AutoModelForCausalLM
        model, info = factory.from_pretrained(
            label, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True, **common
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise BackendError(f"model '{label}' has no weights for {missing[0]!r}: the checkpoint is not complete")
    _refuse_unsupported(model, label)
    model.eval().requires_grad_(requires_grad=False)
    model.to(device)
    if quantization is not None:
        quantize(model, quantization, label)
    return model, tokenizer


def quantize(model: Any, kind: Literal["int8", "int4"], label: str) -> None:
    """Hold the weights of all linear layers but the head in INT8 (per channel) or INT4 (groups of 32), by torchao.

    Raises:
        BackendError: a layer's width is no multiple of the group size.
        MissingPackageError: torchao is not installed.
    """
    with quiet_torchao():
        try:
            from torchao import quantization as ao
        except ImportError:
            raise MissingPackageError(f"quantization '{kind}'", "torchao", "quantize") from None

        head = model.get_output_embeddings()
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        if kind == "int8":
            config = ao.Int8WeightOnlyConfig()
        else:
            _check_groups(layers, label)
            config = ao.IntxWeightOnlyConfig(vars(torch)["int4"], ao.PerGroup(GROUP_SIZE))
        ao.quantize_(model, config, filter_fn=lambda _, name: name in layers)


def _check_groups(layers: dict[str, nn.Linear], label: str) -> None:
    for name, layer in layers.items():
        if layer.in_features % GROUP_SIZE:
            raise BackendError(
                f"quantization 'int4' needs layers whose width is a multiple of {GROUP_SIZE}, but {name!r} of model "
                f"'{label}' has {layer.in_features}: use 'int8'"
            )


def _refuse_unsupported(model: Any, label: str) -> None:
    """Refuse recurrent layers: what they remember of finished rows cannot be taken out of the cache."""
    config = model.config.get_text_config()
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in SUPPORTED_LAYERS:
            raise BackendError(f"model '{label}' has layers of type {kind!r}, which backend 'torch' does not support")
    if getattr(config, "is_encoder_decoder", False):
        raise BackendError(f"model '{label}' is an encoder-decoder, expected a causal language model")


@contextlib.contextmanager
def _one_line_errors(label: str) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be loaded into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise BackendError(
                f"model '{label}' does not fit the device's memory: use a smaller one or int8"
            ) from error
        detail = " ".join(str(error).split())[:300]
        raise BackendError(f"model '{label}' cannot be loaded: {type(error).__name__}: {detail}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars of loading."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_torchao() -> Iterator[None]:
    """Hide what torchao, which transformers imports too, says of its missing kernels and of torch's deprecations."""
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
