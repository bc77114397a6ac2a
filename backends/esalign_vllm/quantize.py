"""Write a quantised copy of a Hugging Face model that vLLM loads: INT8 and INT4 by rounding to the nearest.

    python -m esalign_vllm.quantize model/ model-int8/ --scheme w8a8

No data is needed, and none is used: scales are the largest weight of each output channel (or group). Tools that
calibrate, as llm-compressor does, lose less; files of theirs load just as well.

    scheme  weights                           activations       written as
    w8a8    INT8, a scale per output channel  INT8, per token   compressed-tensors, int-quantized
    w4a16   INT4, a scale per group           16 bits           compressed-tensors, pack-quantized
    gptq    INT4, a scale per group           16 bits           GPTQ, symmetric, no reordering
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esalign.errors import BackendError
from esalign_vllm.environment import quietly

if TYPE_CHECKING:
    from torch import Tensor

PER_WORD = 8  # 4-bit values in a 32-bit word
WEIGHT = ".weight"


def quantize_model(source: str | Path, target: str | Path, *, scheme: str, group_size: int = 32) -> Path:
    """Write a quantised copy of a model. The output embedding keeps its precision.

    Args:
        source: folder of the model, with safetensors.
        target: folder to write; made if it does not exist.
        scheme: ``w8a8``, ``w4a16`` or ``gptq``.
        group_size: inputs that share a scale in the 4-bit schemes; divides the width of every layer.

    Returns:
        The target folder.

    Raises:
        BackendError: an unknown scheme, a model that cannot be read, or widths that do not fit the group size.
    """
    if scheme not in SCHEMES:
        raise BackendError(f"scheme is {scheme!r}, expected {', '.join(SCHEMES)}")
    source, target = Path(source), Path(target)
    names, config = _find_linear_layers(source)
    tensors = _read_weights(source)
    quantize, describe = SCHEMES[scheme]
    for name in names:
        weight = tensors.pop(name + WEIGHT)
        if scheme != "w8a8" and (weight.shape[1] % group_size or group_size % PER_WORD):
            raise BackendError(
                f"{name} has {weight.shape[1]} inputs, which groups of {group_size} do not divide: "
                f"choose a group size that is a multiple of {PER_WORD} and divides all widths"
            )
        tensors |= {f"{name}.{part}": value for part, value in quantize(weight.float(), group_size).items()}
    config["quantization_config"] = describe(group_size)
    _write_model(source, target, tensors, config)
    return target


def _find_linear_layers(source: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the linear layers to quantise, and the content of config.json."""
    import torch
    from transformers import AutoConfig

    from esalign.space.skeleton import make_skeleton

    file = source / "config.json"
    if not file.is_file():
        raise BackendError(f"'{source}' has no config.json: expected the folder of a Hugging Face model")
    config = json.loads(file.read_text())
    if "quantization_config" in config:
        raise BackendError(f"'{source}' is quantised already: give the model in full precision")
    skeleton = make_skeleton(AutoConfig.from_pretrained(source))
    head = skeleton.get_output_embeddings()
    names = [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return names, config


def _read_weights(source: Path) -> dict[str, "Tensor"]:
    from safetensors.torch import load_file

    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise BackendError(f"'{source}' has no *.safetensors: save the model with save_pretrained()")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _write_model(source: Path, target: Path, tensors: Mapping[str, "Tensor"], config: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith((".", "model", "pytorch_model")):
            shutil.copy2(file, target)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _quantize_channels(weight: "Tensor", _group_size: int) -> dict[str, "Tensor"]:
    """Return the INT8 weight and a scale per output channel of a weight, shape (out, in)."""
    import torch

    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127.0
    values = (weight / scale).round().clamp(-128, 127).to(torch.int8)
    return {"weight": values, "weight_scale": scale}


def _quantize_groups(weight: "Tensor", group_size: int) -> tuple["Tensor", "Tensor"]:
    """Return 4-bit values in -8..7, shape (out, in), and scales, shape (out, groups)."""
    groups = weight.view(len(weight), -1, group_size)
    scale = groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-8) / 7.0
    values = (groups / scale).round().clamp(-8, 7)
    return values.view_as(weight).int(), scale[:, :, 0]


def _pack_words(values: "Tensor") -> "Tensor":
    """Pack 4-bit values in 0..15 along the last dimension, the first in the lowest bits, into int32."""
    import torch

    shifts = torch.arange(PER_WORD, dtype=torch.int64) * 4
    words = (values.to(torch.int64).unflatten(-1, (-1, PER_WORD)) << shifts).sum(dim=-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _pack_compressed_tensors(weight: "Tensor", group_size: int) -> dict[str, "Tensor"]:
    import torch

    values, scale = _quantize_groups(weight, group_size)
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    return {"weight_packed": _pack_words(values + 8), "weight_scale": scale, "weight_shape": shape}


def _pack_gptq(weight: "Tensor", group_size: int) -> dict[str, "Tensor"]:
    import torch

    values, scale = _quantize_groups(weight, group_size)
    zeros = torch.full((scale.shape[1], len(weight)), 7)  # GPTQ stores the zero point less one
    return {
        "qweight": _pack_words(values + 8).T,
        "scales": scale.T.to(torch.float16),
        "qzeros": _pack_words(zeros),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // group_size,
    }


def _compressed_tensors(kind: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _describe_w8a8(_group_size: int) -> dict[str, Any]:
    number = {"num_bits": 8, "type": "int", "symmetric": True}
    weights = {**number, "strategy": "channel", "dynamic": False}
    return _compressed_tensors("int-quantized", weights, {**number, "strategy": "token", "dynamic": True})


def _describe_w4a16(group_size: int) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    return _compressed_tensors("pack-quantized", {**weights, "dynamic": False, "actorder": None}, None)


def _describe_gptq(group_size: int) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
    }


Quantizer = Callable[["Tensor", int], dict[str, "Tensor"]]
SCHEMES: Mapping[str, tuple[Quantizer, Callable[[int], dict[str, Any]]]] = {
    "w8a8": (_quantize_channels, _describe_w8a8),
    "w4a16": (_pack_compressed_tensors, _describe_w4a16),
    "gptq": (_pack_gptq, _describe_gptq),
}


def main() -> None:
    """Read the command line and write the copy."""
    parser = argparse.ArgumentParser(description="Write a quantised copy of a Hugging Face model for vLLM.")
    parser.add_argument("source", help="folder of the model")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default="w8a8")
    parser.add_argument("--group-size", type=int, default=32)
    options = parser.parse_args()
    try:
        with quietly():
            quantize_model(options.source, options.target, scheme=options.scheme, group_size=options.group_size)
    except BackendError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
