"""Adapters and weights in GGUF files, for the core's entry-point group ``esalign.formats``."""

from esalign_llama_cpp.export import export_gguf
from esalign_llama_cpp.lora import read_gguf_adapter
from esalign_llama_cpp.weights import GgufWeights

read_adapter = read_gguf_adapter
export_adapter = export_gguf
open_weights = GgufWeights
