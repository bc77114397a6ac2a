"""What a run leaves behind: a PEFT adapter with its model card, checked against the engine, and merged models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esalign.engines.loading import LoadedModel, load_model
from esalign.errors import AdapterError
from esalign.protocols import Space
from esalign.space.adapter import read_adapter
from esalign.types import Array, Completion

REQUIRED_AGREEMENT = 0.995  # of sequences, in float32; other types round differently from one program to another
BATCH = 64  # prompts that transformers completes at once


@dataclass(frozen=True)
class Verification:
    """How the saved adapter, loaded by transformers and peft, compares with the engine.

    Args:
        good: False when it does not give what the engine gave.
        agreement: share of sequences with equal greedy tokens; None where they could not be compared.
        count: number of sequences.
        note: in words.
    """

    good: bool
    agreement: float | None
    count: int
    note: str


def save_adapter(space: Space, vector: Array, folder: Path) -> Path:
    """Write a search vector as a PEFT adapter, and read it back to see that it is what was meant.

    Raises:
        AdapterError: what was read back differs.
    """
    space.save_pretrained(vector, folder)
    for meant, read in zip(space.fold(vector).modules, read_adapter(folder).modules, strict=True):
        if meant.scaling != read.scaling or (meant.A != read.A).any() or (meant.B != read.B).any():
            raise AdapterError(f"'{folder}' does not read back as it was written, at {meant.name}: is the disk sound?")
    return folder


def verify_adapter(
    model: str,
    adapter: Path,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    *,
    max_tokens: int,
    dtype: str,
    exact: bool,
) -> Verification:
    """Load base model and adapter by transformers and peft, and compare greedy tokens with the engine's.

    Args:
        model: base model, Hugging Face id or local folder.
        adapter: the saved adapter.
        prompts: token ids.
        completions: the engine's greedy completions of them.
        max_tokens: limit of the engine's completions.
        dtype: float32, bfloat16 or float16; auto for the model's own.
        exact: whether the engine computes in float32 with unquantised weights, so that tokens must be equal.
    """
    obstacle = obstacle_for_peft(model)
    if obstacle:
        return Verification(True, None, 0, f"not compared: {obstacle}")
    completed = generate_with_peft(model, adapter, prompts, max_tokens=max_tokens, dtype=dtype)
    equal = [_is_same(ids, completion) for ids, completion in zip(completed, completions, strict=True)]
    agreement = sum(equal) / len(equal)
    note = f"{sum(equal)} of {len(equal)} greedy completions equal those of transformers + peft"
    if exact and agreement < REQUIRED_AGREEMENT:
        return Verification(False, agreement, len(equal), f"only {note}: do not use this adapter, and report a bug")
    if not exact:
        note += " (the engine's precision differs, so not all can be)"
    return Verification(True, agreement, len(equal), note)


def obstacle_for_peft(model: str) -> str | None:
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


def _is_same(ids: Sequence[int], completion: Completion) -> bool:
    """Compare with the ids of transformers, which may go on where the engine stopped: behind a stop string."""
    ended = len(completion.token_ids) if completion.finish_reason == "stop" else len(ids)
    return list(ids[:ended]) == list(completion.token_ids)


def generate_with_peft(
    model: str, adapter: Path | None, prompts: Sequence[Sequence[int]], *, max_tokens: int, dtype: str
) -> list[list[int]]:
    """Complete prompts greedily with transformers and peft alone, up to and including the end of sequence."""
    loaded = load_model("model", model, None if adapter is None else str(adapter), dtype=dtype)
    ends = loaded.ends
    completed = []
    for start in range(0, len(prompts), BATCH):
        for row in _generate(loaded, prompts[start : start + BATCH], max_tokens):
            end = next((position for position, token in enumerate(row) if token in ends), len(row))
            completed.append(row[: end + 1])
    return completed


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
