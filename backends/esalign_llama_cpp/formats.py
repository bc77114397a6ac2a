"""Adapters in GGUF files, for the core's entry-point group ``esalign.formats``."""

from esalign_llama_cpp.export import export_gguf
from esalign_llama_cpp.lora import read_gguf_adapter

read_adapter = read_gguf_adapter
export_adapter = export_gguf
