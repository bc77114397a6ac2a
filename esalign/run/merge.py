"""Merged models: the adapter folded into the base model's weights."""

from pathlib import Path

from esalign.engines.loading import load_model
from esalign.errors import AdapterError
from esalign.run.reference import find_obstacle


def merge_adapter(model: str, adapter: Path, out: Path, *, dtype: str = "auto") -> float:
    """Write the base model with the adapter folded into its weights, and its tokenizer.

    Returns:
        The largest difference of logits between the merged model, read back, and base + adapter, on a fixed prompt.

    Raises:
        AdapterError: the base model is quantised, or none of transformers'.
    """
    import torch

    obstacle = find_obstacle(model)
    if obstacle:
        raise AdapterError(f"cannot merge into '{model}': {obstacle}; export the adapter by itself")
    loaded = load_model("model", model, str(adapter), dtype=dtype)
    with_adapter = loaded.model
    vocabulary = with_adapter.get_input_embeddings().num_embeddings
    ids = torch.arange(32, device=with_adapter.device).remainder(vocabulary)[None]
    with torch.inference_mode():
        expected = with_adapter(ids).logits
    merged = with_adapter.merge_and_unload()
    merged.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    again = load_model("model", str(out), dtype=str(merged.dtype).removeprefix("torch.")).model
    with torch.inference_mode():
        return float((again(ids).logits - expected).abs().max())
