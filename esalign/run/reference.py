"""What transformers and peft alone make of a model and an adapter: what every engine is held to."""

from collections.abc import Sequence
from typing import Any

from esalign.engines.loading import LoadedModel, load_model

BATCH = 64  # prompts that transformers completes at once


def find_obstacle(model: str) -> str | None:
    """Say why transformers and peft cannot stand in for an engine with a base model; None if they can."""
    if model.endswith(".gguf"):
        return "the base model is a GGUF file, whose dequantised weights are not those that its engine computes with"
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
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
    completed = []
    for start in range(0, len(prompts), BATCH):
        for row in _generate(loaded, prompts[start : start + BATCH], max_tokens):
            end = next((position for position, token in enumerate(row) if token in loaded.ends), len(row))
            completed.append(row[: end + 1])
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
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        table = logits.float().log_softmax(dim=-1)  # (tokens, vocab)
        given.append(table.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist())
        likeliest.append(table.max(dim=1).values.tolist())
    return {"obstacle": None, "given": given, "likeliest": likeliest}


def _generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Return the generated tokens of one batch, padding behind their ends included."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    device = loaded.model.device
    # Shape (prompts, tokens), padded on the left, where no attention falls.
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    with torch.inference_mode():
        rows = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(loaded.ends) or None,
            pad_token_id=0,
        )
    generated: list[list[int]] = rows[:, width:].tolist()
    return generated
