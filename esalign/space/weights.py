"""The matrices of a base model's linear layers, read one at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from esalign.errors import BackendError
from esalign.registry import find_format
from esalign.space.hub import find_folder
from esalign.space.imports import import_transformers
from esalign.space.targets import linear_layers
from esalign.types import Array


class Weights(Protocol):
    """The linear layers of one model."""

    @property
    def names(self) -> Sequence[str]:
        """Their names in the Hugging Face model, e.g. ``model.layers.0.self_attn.q_proj``, in the model's order."""

    def read(self, name: str) -> Array:
        """Return a layer's matrix W, shape (out, in), float32."""


def open_weights(model: str) -> Weights:
    """Open the weights of a Hugging Face model, or of a file in a format of an installed engine (GGUF).

    Raises:
        BackendError: the model cannot be read.
    """
    form = find_format(model)
    opened: Weights = form.open_weights(model) if form else CheckpointWeights(model)
    return opened


class CheckpointWeights:
    """The linear layers of a model in safetensors files. Its shape comes from its configuration, without weights.

    Args:
        model: a folder, or an id of the Hugging Face hub.
    """

    def __init__(self, model: str) -> None:
        self._label = f"model '{model}'"
        self._folder = find_folder(model, "model", ("*.json", "*.safetensors"), BackendError)
        self._files = _find_tensors(self._folder, self._label)
        modules, prefix = _read_shape(self._folder, self._label)
        # A checkpoint may leave out the name of the model within the model, as GPT-2's does.
        self._keys = {name: self._find_key(name, prefix) for name in modules}
        self._transposed = {name for name, transposed in modules.items() if transposed}
        self.names = tuple(name for name, key in self._keys.items() if key)

    def _find_key(self, name: str, prefix: str) -> str | None:
        keys = (f"{name}.weight", f"{name.removeprefix(prefix + '.')}.weight", f"{prefix}.{name}.weight")
        return next((key for key in keys if key in self._files), None)

    def read(self, name: str) -> Array:
        """Return a layer's matrix, shape (out, in), float32."""
        from safetensors import safe_open

        key = self._keys[name]
        with safe_open(self._files[key], "pt") as tensors:
            weight = tensors.get_tensor(key)
        if not weight.is_floating_point() or weight.itemsize < 2 or weight.ndim != 2:  # one byte: float8, whose
            # scales lie in tensors of their own
            raise BackendError(
                f"{self._label} holds {name} as {weight.dtype} of shape {tuple(weight.shape)}, expected a plain "
                "matrix: take the model before its quantisation, or a GGUF file"
            )
        matrix: Array = weight.float().numpy()
        return matrix.T if name in self._transposed else matrix


def _find_tensors(folder: Path, label: str) -> dict[str | None, Path]:
    """Return in which file each tensor lies."""
    from safetensors import SafetensorError, safe_open

    found: dict[str | None, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file)
        except (SafetensorError, OSError) as error:
            raise BackendError(f"'{file}' is broken ({error}): download the model again") from error
    if not found and (others := sorted(folder.glob("*.gguf"))):
        raise BackendError(f"{label} is a folder of GGUF files: name the file, such as model.path='{others[0]}'")
    if not found:
        raise BackendError(f"{label} has no safetensors weights: save it with save_pretrained of transformers")
    return found


def _read_shape(folder: Path, label: str) -> tuple[dict[str, bool], str]:
    """Return the model's linear layers but its head, each with whether it is stored transposed; and its prefix."""
    from esalign.space.skeleton import make_skeleton

    try:
        model = make_skeleton(import_transformers().AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        detail = " ".join(str(error).split())[:300]
        raise BackendError(f"{label} cannot be read: {type(error).__name__}: {detail}") from error
    return linear_layers(model), model.base_model_prefix
