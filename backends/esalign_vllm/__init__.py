"""vLLM as an engine: a whole population in one call, over one copy of the frozen factors."""

from esalign_vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
