"""The reference engine: a whole population as one batch over one copy of the weights, on PyTorch."""

from esalign_torch.backend import TorchBackend

__all__ = ["TorchBackend"]
