"""What transformers and peft alone make of a model and an adapter: what every engine is held to."""

from collections.abc import Sequence
from typing import Any

from esalign.engines.loading import load_model
from esalign.space.imports import import_transformers

BATCH = 64  # prompts that transformers completes at once


def find_obstacle(model: str) -> str | None:
    """Say why transformers and peft cannot stand in for an engine with a base model; None if they can."""
    if model.endswith(".gguf"):
        return "the base model is a GGUF file, whose dequantised weights are not those that its engine computes with"
    try:
        config = import_transformers().AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        return f"transformers cannot read the base model ({str(error).strip().splitlines()[0]})"
    if getattr(config, "quantization_config", None):
        return "the base model is quantised, which transformers and peft compute in another way, or not at all"
    return None


def complete(
    model: str, adapter: str | None, prompts: Sequence[Sequence[int]], *, max_tokens: int, dtype: str
) -> dict[str, Any]:
    """Complete prompts (token ids) greedily, up to and including the end of sequence.

    Returns:
        ``obstacle``: why it cannot be done, or None; ``completions``: token ids of each prompt's.
    """
    if obstacle := find_obstacle(model):
        return {"obstacle": obstacle, "completions": []}
    loaded = load_model("model", model, adapter, dtype=dtype)
    batches = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
    completed = [row for batch in batches for row in loaded.complete(batch, max_tokens)]
    return {"obstacle": None, "completions": completed}


def score(
    model: str, adapter: str | None, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, dtype: str
) -> dict[str, Any]:
    """Score (prompt, completion) pairs of token ids, teacher-forced, on the CPU: the GPU is the engine's.

    Returns:
        ``obstacle``: why it cannot be done, or None; ``given`` and ``likeliest``: log-probabilities (nats) of the
        completions' tokens, and of the likeliest token at each place, (sequences, tokens).
    """
    import torch

    if obstacle := find_obstacle(model):
        return {"obstacle": obstacle, "given": [], "likeliest": []}
    loaded = load_model("model", model, adapter, dtype=dtype, device="cpu")
    given, likeliest = [], []
    for prompt, completion in sequences:
        table = loaded.log_probabilities(prompt, completion)  # (tokens, vocab)
        given.append(table.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist())
        likeliest.append(table.max(dim=1).values.tolist())
    return {"obstacle": None, "given": given, "likeliest": likeliest}
