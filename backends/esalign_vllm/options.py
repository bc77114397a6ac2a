"""Options of the engine: which go through to vLLM's ``LLM()``, which the backend sets itself, which are mistakes."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from esalign.errors import BackendError, ConfigError
from esalign.registry import did_you_mean

OWN = ("mode", "slots", "seed", "chat_template_kwargs")
SET_BY_BACKEND = (
    "additional_config",
    "data_parallel_size",
    "enable_lora",
    "logprobs_mode",
    "lora_modules",
    "lora_target_modules",
    "max_cpu_loras",
    "max_logprobs",
    "max_lora_rank",
    "max_loras",
    "skip_tokenizer_init",
    "speculative_config",
    "worker_extension_cls",
)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that vLLM does not know, or that the backend sets itself.

    Raises:
        ConfigError: such an option.
    """
    known = _llm_arguments() - {"model", "dtype", "seed"}
    for name in options:
        if name in SET_BY_BACKEND:
            raise ConfigError(f"option {name!r} of backend 'vllm' is set by the backend: leave it out")
        if name not in known:
            hint = did_you_mean(name, sorted(known.union(OWN))) or "; see the arguments of vllm.LLM"
            raise ConfigError(f"backend 'vllm' has no option {name!r}{hint}")


def _llm_arguments() -> set[str]:
    """Return the names of all arguments of ``vllm.LLM()``."""
    from vllm import LLM, EngineArgs

    named = {p.name for p in inspect.signature(LLM.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD}
    return (named | {field.name for field in dataclasses.fields(EngineArgs)}) - {"self"}


def check_device(device: str) -> bool:
    """Return whether the installed vLLM computes on the CPU.

    Raises:
        BackendError: it was built for another device than the one that was asked for.
    """
    from vllm.platforms import current_platform

    kind = current_platform.device_type
    if device in ("auto", kind):
        return bool(kind == "cpu")
    if device.startswith(f"{kind}:"):
        raise BackendError(
            f"backend 'vllm' got device {device!r}, expected {kind!r}: choose among devices by the environment "
            "variable CUDA_VISIBLE_DEVICES"
        )
    raise BackendError(f"backend 'vllm' got device {device!r}, but the installed vLLM computes on {kind!r} alone")


def choose_dtype(dtype: str, config: Any) -> str:
    """Return the compute type by name. Left to itself, vLLM would run float32 models in 16 bits.

    Args:
        dtype: ``auto``, or a type's name.
        config: the model's configuration in transformers.

    Raises:
        BackendError: a type that vLLM does not compute in.
    """
    known = ("float32", "bfloat16", "float16")
    own = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    chosen = str(own or "float32") if dtype == "auto" else dtype
    name = chosen.removeprefix("torch.")
    if name not in known:
        raise BackendError(f"backend 'vllm' got dtype {dtype!r}, expected auto, {', '.join(known)}")
    return name


def default_arguments(config: Any, dtype: str, options: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
    """Return arguments of ``vllm.LLM`` that the user's options may override, and those that scoring needs."""
    arguments = {
        "dtype": dtype,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments["enforce_eager"] = True
        if not {"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"}.intersection(options):
            sequences = options.get("max_num_seqs") or 256
            own = getattr(config.get_text_config(), "max_position_embeddings", None)
            tokens = int(options.get("max_model_len") or own or 4096)
            arguments["kv_cache_memory_bytes"] = cpu_cache_bytes(config, dtype, sequences=sequences, tokens=tokens)
    return arguments


def cpu_cache_bytes(config: Any, dtype: str, *, sequences: int, tokens: int) -> int:
    """Return a size for the key-value cache on a CPU: all sequences at full length, but at most a quarter of memory.

    Args:
        config: the model's configuration in transformers.
        dtype: type of keys and values.
        sequences: the most sequences at a time.
        tokens: the most tokens of a sequence.
    """
    import psutil

    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * heads * width * (4 if dtype == "float32" else 2)
    rounded = -(-tokens // 128) * 128 + 128  # vLLM's blocks on CPUs hold up to 128 tokens
    most = psutil.virtual_memory().available // 4
    return int(max(min(sequences * rounded * token, most), 2 * rounded * token))
