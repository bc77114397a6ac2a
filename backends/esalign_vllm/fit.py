"""Does the adapter fit the model? Found out from the model's configuration, before an engine is started."""

from importlib import import_module
from typing import Any

from esalign.engines.layers import find_adapted
from esalign.engines.loading import one_line_errors
from esalign.errors import BackendError
from esalign.protocols import Space


def load_config(model: str, *, trust_remote_code: bool) -> Any:
    """Return the model's configuration in transformers.

    Raises:
        BackendError: there is no readable model.
    """
    if model.endswith(".gguf"):
        raise BackendError(
            f"model '{model}' is a GGUF file, which backend 'vllm' does not read here: use 'llama-cpp' or 'torch'"
        )
    with one_line_errors(f"model '{model}'"):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)


def check_kernels(config: Any, label: str, *, on_cpu: bool) -> None:
    """Refuse 4-bit weights on CPUs for which vLLM has no such kernel: its build for AVX2 lacks it, and says so late.

    Raises:
        BackendError: such a model and CPU.
    """
    if not on_cpu or 4 not in _weight_bits(getattr(config, "quantization_config", None)):
        return
    import torch

    import_module("vllm._custom_ops")  # loads the kernels of this CPU
    if not hasattr(torch.ops._C, "cpu_gemm_wna16"):  # noqa: SLF001  (the name of vLLM's library)
        raise BackendError(
            f"model '{label}' has 4-bit weights, for which vLLM has no kernel on this CPU (it takes AVX-512): use one "
            "with INT8 weights (scheme w8a8), or backend 'llama-cpp'"
        )


def _weight_bits(settings: Any) -> set[int]:
    """Return the widths of a model's quantised weights, from its ``quantization_config`` (GPTQ, AWQ, ...).

    >>> _weight_bits({"quant_method": "gptq", "bits": 4}), _weight_bits(None)
    ({4}, set())
    """
    if settings is None:
        return set()
    content = settings if isinstance(settings, dict) else settings.to_dict()
    groups = (content.get("config_groups") or {}).values()
    widths = [content.get("bits"), *((group.get("weights") or {}).get("num_bits") for group in groups)]
    return {width for width in widths if width is not None}


def load_generation_config(model: str, config: Any) -> Any:
    """Return the model's generation configuration in transformers, from its configuration where it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return GenerationConfig.from_model_config(config)


def check_fit(space: Space, config: Any, label: str) -> None:
    """Refuse an adapter that was made for another model.

    An architecture that transformers itself cannot build is left to the engine to check.

    Raises:
        BackendError: an adapted layer is missing, is not linear, or has another shape than the adapter's factors.
    """
    from esalign.space.skeleton import make_skeleton

    try:
        skeleton = make_skeleton(config)
    except (ValueError, KeyError, ImportError, NotImplementedError):
        return
    find_adapted(skeleton, space, f"model '{label}'")
