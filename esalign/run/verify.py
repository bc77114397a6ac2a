"""What a run leaves behind: a PEFT adapter, checked against the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esalign.errors import AdapterError
from esalign.protocols import Space
from esalign.run.apart import call_apart
from esalign.run.reference import complete
from esalign.space.adapter import read_adapter
from esalign.types import Array, Completion

REQUIRED_AGREEMENT = 0.995  # of sequences, in float32; other types round differently from one program to another


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

    It is done in a process of its own, as engines change the libraries (vLLM replaces parts of transformers).

    Args:
        model: base model, Hugging Face id or local folder.
        adapter: the saved adapter.
        prompts: token ids.
        completions: the engine's greedy completions of them.
        max_tokens: limit of the engine's completions.
        dtype: float32, bfloat16 or float16; auto for the model's own.
        exact: whether the engine computes in float32 with unquantised weights, so that tokens must be equal.

    Raises:
        BackendError: they cannot be loaded there.
    """
    found = call_apart(complete, model=model, adapter=str(adapter), prompts=prompts, max_tokens=max_tokens, dtype=dtype)
    if found["obstacle"]:
        return Verification(True, None, 0, f"not compared: {found['obstacle']}")
    pairs = zip(found["completions"], completions, strict=True)
    equal = [_is_same(ids, completion) for ids, completion in pairs]
    agreement = sum(equal) / len(equal)
    note = f"{sum(equal)} of {len(equal)} greedy completions equal those of transformers + peft"
    if exact and agreement < REQUIRED_AGREEMENT:
        return Verification(False, agreement, len(equal), f"only {note}: do not use this adapter, and report a bug")
    if not exact:
        note += " (the engine's precision differs, so not all can be)"
    return Verification(True, agreement, len(equal), note)


def _is_same(ids: Sequence[int], completion: Completion) -> bool:
    """Compare with the ids of transformers, which may go on where the engine stopped: behind a stop string."""
    ended = len(completion.token_ids) if completion.finish_reason == "stop" else len(ids)
    return list(ids[:ended]) == list(completion.token_ids)
