"""What a run leaves behind: a PEFT adapter with its model card, checked against the engine, and merged models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esalign.adapter_io import read_adapter, write_atomically
from esalign.errors import AdapterError
from esalign.space import SvdLora
from esalign.types import Array, Completion

if TYPE_CHECKING:
    from esalign.config import RunConfig
    from esalign.run import Result

REQUIRED_AGREEMENT = 0.995  # of sequences, in float32; other types round differently from one program to another
BATCH = 64  # prompts that transformers answers at once


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


def save_adapter(space: SvdLora, vector: Array, folder: Path) -> Path:
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
        completions: the engine's greedy answers to them.
        max_tokens: limit of the engine's answers.
        dtype: float32, bfloat16 or float16; auto for the model's own.
        exact: whether the engine computes in float32 with unquantised weights, so that tokens must be equal.
    """
    obstacle = obstacle_for_peft(model)
    if obstacle:
        return Verification(True, None, 0, f"not compared: {obstacle}")
    answers = generate_with_peft(model, adapter, prompts, max_tokens=max_tokens, dtype=dtype)
    equal = [_is_same(answer, completion) for answer, completion in zip(answers, completions, strict=True)]
    agreement = sum(equal) / len(equal)
    note = f"{sum(equal)} of {len(equal)} greedy answers equal those of transformers + peft"
    if exact and agreement < REQUIRED_AGREEMENT:
        return Verification(False, agreement, len(equal), f"only {note}: do not use this adapter, and report a bug")
    if not exact:
        note += " (the engine's precision differs, so not all can be)"
    return Verification(True, agreement, len(equal), note)


def obstacle_for_peft(model: str) -> str | None:
    """Say why transformers and peft cannot stand in for an engine with a base model; None if they can."""
    from transformers import AutoConfig

    if model.endswith(".gguf"):
        return "transformers does not load the GGUF base model"
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        return f"transformers cannot read the base model ({str(error).strip().splitlines()[0]})"
    if getattr(config, "quantization_config", None):
        return "the base model is quantised, which transformers and peft compute in another way, or not at all"
    return None


def _is_same(answer: Sequence[int], completion: Completion) -> bool:
    """Compare with an answer of transformers, which may go on where the engine stopped: behind a stop string."""
    ended = len(completion.token_ids) if completion.finish_reason == "stop" else len(answer)
    return list(answer[:ended]) == list(completion.token_ids)


def generate_with_peft(
    model: str, adapter: Path | None, prompts: Sequence[Sequence[int]], *, max_tokens: int, dtype: str
) -> list[list[int]]:
    """Answer prompts greedily with transformers and peft alone, up to and including the end of sequence."""
    loaded = load_with_peft(model, adapter, dtype=dtype)
    ends = loaded.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]  # [None] where the model has none
    answers = []
    for start in range(0, len(prompts), BATCH):
        for row in _generate(loaded, prompts[start : start + BATCH], max_tokens):
            end = next((position for position, token in enumerate(row) if token in ends), len(row))
            answers.append(row[: end + 1])
    return answers


def _generate(loaded: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Return the generated tokens of one batch, padding behind their ends included."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    device = loaded.device
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    with torch.inference_mode():
        rows = loaded.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )
    answers: list[list[int]] = rows[:, width:].tolist()
    return answers


def load_with_peft(model: str, adapter: Path | None, *, dtype: str) -> Any:
    """Load a causal language model, with a LoRA adapter when one is given; on the GPU where there is one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=kind)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, str(adapter))
    return loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def merge_adapter(model: str, adapter: Path, out: Path, *, dtype: str = "auto") -> float:
    """Write the base model with the adapter folded into its weights, and its tokenizer.

    Returns:
        The largest difference of logits between the merged model, read back, and base + adapter, on a fixed prompt.

    Raises:
        AdapterError: the base model is quantised, or none of transformers'.
    """
    import torch
    from transformers import AutoTokenizer

    obstacle = obstacle_for_peft(model)
    if obstacle:
        raise AdapterError(f"cannot merge into '{model}': {obstacle}; export the adapter by itself")
    with_adapter = load_with_peft(model, adapter, dtype=dtype)
    vocabulary = with_adapter.get_input_embeddings().num_embeddings
    ids = torch.arange(32, device=with_adapter.device).remainder(vocabulary)[None]
    with torch.inference_mode():
        expected = with_adapter(ids).logits
    merged = with_adapter.merge_and_unload()
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    again = load_with_peft(str(out), None, dtype=str(merged.dtype).removeprefix("torch."))
    with torch.inference_mode():
        return float((again(ids).logits - expected).abs().max())


def comparison_table(result: "Result") -> str:
    """Return the start and the result on every held-out set as a Markdown table."""
    head = ["| held-out problems | start | result | gain (paired) | problems |", "|---|---|---|---|---|"]
    rows = [
        f"| {name} | {c.start} | {c.result} | {c.gain.mean:+.3f} [{c.gain.low:+.3f}, {c.gain.high:+.3f}] "
        f"| {c.start.count} |"
        for name, c in result.comparisons.items()
    ]
    return "\n".join(head + rows)


def write_model_card(folder: Path, config: "RunConfig", result: "Result", verification: Verification) -> None:
    """Write the README.md that says what the adapter is, how it was made and how it did."""
    rewards = ", ".join(f"{reward.name} (weight {reward.weight:g})" for reward in config.rewards)
    kl = "not measured" if result.kl is None else f"{result.kl:.4f} nats per token"
    card = f"""---
base_model: {json.dumps(config.model.path)}
library_name: peft
pipeline_tag: text-generation
tags: [lora, esalign, evolution-strategies]
---

# {config.run.name}

A LoRA adapter aligned without gradients by esalign: an evolution strategy
searched over the singular values of the adapter `{config.model.adapter}` (ESSA, arXiv 2507.04453).

{comparison_table(result)}

All intervals are 95 %. The result is the mean of generation {result.generation}, chosen on validation problems of
their own.

- Data: `{config.data.source}`. Rewards: {rewards}.
- Optimiser: {config.optimizer.name}, {config.optimizer.population} candidates x {config.fitness.prompts} problems,
  sigma {config.optimizer.sigma:g}, seed {config.run.seed}. Stopped: {result.reason}.
- KL to the start: {kl}.
- Check: {verification.note}.
"""
    write_atomically(folder / "README.md", card.encode())
