"""What an adapter_config.json says, read as peft reads it; and what of it is refused."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esalign.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "activated LoRA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "layer replication",
    "target_parameters": "target parameters",
    "megatron_config": "Megatron layers",
}
HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` by name that leave the base model as it is."""

KEPT = (
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
)
"""The keys that say what the factors mean. The others steer training or belong to a variant, and are not written."""

SMALLEST_ALPHA, LARGEST_ALPHA = 1e-6, 1e6

Config = Mapping[str, Any]


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of an adapter's folder.

    Raises:
        AdapterError: there is none, it is broken, or it is of a kind that has no factors to search over.
    """
    file = path / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"adapter '{path}' has no {CONFIG_FILE}: is it a PEFT adapter?") from None
    except OSError as error:
        raise AdapterError(f"'{file}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"'{file}' is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"'{file}' holds {type(config).__name__}, expected a JSON object")
    _refuse_unsupported(config, path)
    _refuse_malformed(config, path)
    return config


def kept(config: Config) -> dict[str, Any]:
    """Return what of a configuration is written beside new factors, for any version of peft."""
    said = {key: config[key] for key in KEPT if config.get(key) is not None}  # peft takes no null for its patterns
    return {**said, "inference_mode": True, "init_lora_weights": True}


def plain_config(model: str | None, names: Sequence[str], *, rank: int, alpha: float) -> dict[str, Any]:
    """Return the configuration of a LoRA of a causal language model that adapts exactly these layers."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(names),
        "bias": "none",
    }


def scaling_of(name: str, rank: int, config: Config, path: Path) -> float:
    """Return the scaling of a layer's update, ``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA.

    Args:
        name: the layer's name in the base model.
        rank: of the layer's factors.
        config: the adapter's configuration.
        path: the adapter's folder, for messages.

    Raises:
        AdapterError: the configuration says another rank, gives no usable alpha, or does not target the layer.
    """
    if not _is_target(name, config):
        raise AdapterError(
            f"adapter '{path}' holds factors for {name!r}, which its target_modules do not name, so peft would leave "
            "them out: mend target_modules, or save the adapter again"
        )
    configured = _from_pattern(config.get("rank_pattern"), name, config.get("r", 8))
    if configured != rank:
        raise AdapterError(f"adapter '{path}' says rank {configured} for {name!r}, but its factors have rank {rank}")
    alpha = _from_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    if not _is_number(alpha) or not SMALLEST_ALPHA <= abs(alpha) <= LARGEST_ALPHA:
        raise AdapterError(
            f"adapter '{path}' has lora_alpha {alpha!r} for {name!r}, expected a number of {SMALLEST_ALPHA:g} to "
            f"{LARGEST_ALPHA:g}: with others, the update is nothing or overflows"
        )
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _refuse_unsupported(config: Config, path: Path) -> None:
    """Refuse by name every variant whose update is not ``scaling * B @ A`` of linear layers and nothing else."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"adapter '{path}' is of peft_type {kind!r}, expected 'LORA'")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise AdapterError(f"adapter '{path}' is of task_type {task!r}, expected 'CAUSAL_LM'")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise AdapterError(f"adapter '{path}' trains biases, which esalign does not support: train it with bias='none'")
    for key, label in UNSUPPORTED.items():
        if config.get(key) or (key == "alora_invocation_tokens" and config.get(key) is not None):
            raise AdapterError(f"adapter '{path}' uses {label} ({key}), which esalign does not support")
    start = config.get("init_lora_weights")
    if not (start is None or isinstance(start, bool) or start in HARMLESS_STARTS):
        raise AdapterError(
            f"adapter '{path}' was started with init_lora_weights={start!r}, which changes the base model, or is not "
            "known not to (as are true, false, "
            f"{', '.join(HARMLESS_STARTS)}): convert it to a plain LoRA "
            "(PEFT: save_pretrained(path_initial_model_for_weight_conversion=...))"
        )


def _refuse_malformed(config: Config, path: Path) -> None:
    """Refuse values of a type that peft would stumble over, or that would mean nothing."""
    patterns = {key: config.get(key) for key in ("rank_pattern", "alpha_pattern")}
    names = "a list of names, or a text"
    expected = {
        "r": (_is_count(config.get("r", 8)), "a whole number of at least 1"),
        "target_modules": (_is_names(config.get("target_modules")), names),
        "exclude_modules": (
            not config.get("exclude_modules") or _is_names(config["exclude_modules"]),
            "a list of names",
        ),
        "layers_pattern": (not config.get("layers_pattern") or _is_names(config["layers_pattern"]), names),
        "layers_to_transform": (_is_layers(config.get("layers_to_transform")), "a list of layer numbers"),
        **{key: (value is None or isinstance(value, dict), "an object") for key, value in patterns.items()},
    }
    for key, (good, wanted) in expected.items():
        if not good:
            raise AdapterError(f"adapter '{path}' has {key} {config.get(key)!r}, expected {wanted}")
    by_layer = config.get("layers_to_transform") is not None
    if by_layer and isinstance(config["target_modules"], str):
        raise AdapterError(f"adapter '{path}' has layers_to_transform beside a pattern as target_modules: use a list")
    if config.get("layers_pattern") and not by_layer:
        raise AdapterError(f"adapter '{path}' has layers_pattern without layers_to_transform, which peft refuses")
    for ranks in (patterns["rank_pattern"] or {}).values():
        if not _is_count(ranks):
            raise AdapterError(f"adapter '{path}' has {ranks!r} in rank_pattern, expected a whole number of at least 1")
    for pattern in _expressions(config):
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterError(f"adapter '{path}' has a pattern {pattern!r} that cannot be read: {error}") from None


def _expressions(config: Config) -> list[str]:
    """Return all texts of a configuration that peft takes for regular expressions."""
    found = [f"(.*\\.)?({key})$" for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or ()]
    found += [text for name in ("target_modules", "exclude_modules") if isinstance(text := config.get(name), str)]
    layers = config.get("layers_pattern") or ()
    return [*found, *([layers] if isinstance(layers, str) else layers)]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_names(value: Any) -> bool:
    return bool(value) and (
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    )


def _is_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def _is_target(name: str, config: Config) -> bool:
    """Tell whether peft would adapt a layer, by its rules for names."""
    excluded, targets = config.get("exclude_modules"), config["target_modules"]
    if excluded and _is_named(name, excluded):
        return False
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or bool(re.fullmatch(targets, name))
    if name in targets:
        return True
    return _is_named(name, targets) and _is_in_layers(name, config)


def _is_named(name: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, name))
    return name in names or any(name.endswith(f".{end}") for end in names)


def _is_in_layers(name: str, config: Config) -> bool:
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == []:
        return True
    listed = [patterns] if isinstance(patterns, str) else patterns
    rules = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in listed] if listed else [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for match in (re.match(rule, name) for rule in rules) if match), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _from_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return the value for a module as PEFT does: the first key that matches the end of its name, as an expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
