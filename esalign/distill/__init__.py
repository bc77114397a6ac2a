"""On-policy distillation: a student learns a teacher's distribution on prefixes that a blend of both visits."""

from esalign.distill.divergence import forward_kl, jensen_shannon, reverse_kl
from esalign.distill.trust_region import Blend, trust_region_blend

__all__ = ["Blend", "forward_kl", "jensen_shannon", "reverse_kl", "trust_region_blend"]
