"""The matrices of a GGUF model's linear layers, for spaces that start from the weights."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esalign.errors import AdapterError, BackendError
from esalign.types import Array
from esalign_llama_cpp.lora import open_gguf, read_architecture
from esalign_llama_cpp.names import heads_to_permute, linear_from_gguf, unpermute


class GgufWeights:
    """The linear layers of a GGUF model in any quantisation, under the names of Hugging Face models.

    Args:
        model: the file.

    Raises:
        BackendError: its architecture is not known.
        AdapterError: it is missing or broken.
        MissingPackageError: gguf is not installed.
    """

    def __init__(self, model: str | Path) -> None:
        reader = open_gguf(model)
        parts = list(_parts(reader, Path(model)))
        self._architecture, self._heads = read_architecture(reader, model)
        self._tensors = {}
        for tensor in (tensor for part in parts for tensor in part.tensors):
            try:
                self._tensors[linear_from_gguf(tensor.name.removesuffix(".weight"), self._architecture)] = tensor
            except AdapterError:
                continue  # embeddings, norms, biases
        self.names = tuple(self._tensors)
        if not self.names:
            raise BackendError(f"'{model}' holds no linear layers: is it a language model?")

    def read(self, name: str) -> Array:
        """Return a layer's matrix, shape (out, in), float32, its rows ordered as in Hugging Face models."""
        from gguf import dequantize

        tensor = self._tensors[name]
        rows = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return unpermute(rows, heads_to_permute(name, self._architecture, self._heads))


def _parts(reader: Any, model: Path) -> Iterator[Any]:
    """Yield the readers of all files of a model, which llama.cpp may have split as NAME-00001-of-00003.gguf."""
    count = reader.get_field("split.count")
    ending = re.search(r"-00001-of-(\d{5})\.gguf$", model.name)
    yield reader
    if count is None or count.contents() < 2:
        return
    if ending is None or int(ending[1]) != count.contents():
        raise BackendError(
            f"'{model}' is one of {count.contents()} parts of a model: name the first, which ends in "
            f"-00001-of-{count.contents():05d}.gguf"
        )
    for number in range(2, count.contents() + 1):
        yield open_gguf(model.with_name(model.name.replace(ending[0], f"-{number:05d}-of-{ending[1]}.gguf")))
