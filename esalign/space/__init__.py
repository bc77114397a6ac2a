"""What is searched: spaces turn a search vector into singular values around frozen factors.

Each space is a plug, found by the entry-point group ``esalign.spaces``.
"""

from esalign.space.adapter import Adapter, LoraModule, read_adapter, write_adapter
from esalign.space.svd_lora import Factor, SvdLora, SvdModule, open_svd_lora

__all__ = [
    "Adapter",
    "Factor",
    "LoraModule",
    "SvdLora",
    "SvdModule",
    "open_svd_lora",
    "read_adapter",
    "write_adapter",
]
