"""What is searched: spaces turn a search vector into singular values around frozen factors.

Each space is a plug, found by the entry-point group ``esalign.spaces``.
"""

from esalign.space.adapter import Adapter, LoraModule, read_adapter, write_adapter
from esalign.space.base_svd import BaseSvd
from esalign.space.factors import Factor, FactoredSpace, SvdModule
from esalign.space.make import make_space
from esalign.space.svd_lora import SvdLora, open_svd_lora
from esalign.space.tied import TiedSpace

__all__ = [
    "Adapter",
    "BaseSvd",
    "Factor",
    "FactoredSpace",
    "LoraModule",
    "SvdLora",
    "SvdModule",
    "TiedSpace",
    "make_space",
    "open_svd_lora",
    "read_adapter",
    "write_adapter",
]
