"""esalign aligns language models without gradients: evolution strategies over the singular values of LoRA adapters."""
