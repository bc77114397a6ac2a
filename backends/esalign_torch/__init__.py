"""The reference engine: a whole population as one batch over one copy of the weights, on PyTorch."""

from esalign.space.imports import import_transformers

import_transformers()  # before the modules below import parts of it, which would bring what it leaves out

from esalign_torch.backend import TorchBackend  # noqa: E402

__all__ = ["TorchBackend"]
