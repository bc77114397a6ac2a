"""The llama.cpp engine: GGUF models in any quantisation, on CPUs and GPUs.

It is made for llama.cpp as the package llama-cpp-python binds it.
"""

from esalign_llama_cpp.backend import LlamaCppBackend
from esalign_llama_cpp.convert import convert_model
from esalign_llama_cpp.export import export_gguf
from esalign_llama_cpp.library import TESTED
from esalign_llama_cpp.lora import read_gguf_adapter
from esalign_llama_cpp.quantize import quantize_model

__all__ = ["TESTED", "LlamaCppBackend", "convert_model", "export_gguf", "quantize_model", "read_gguf_adapter"]
