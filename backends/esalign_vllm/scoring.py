"""Teacher-forced scores out of vLLM's prompt log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from esalign.engines.checks import Given
from esalign.types import Array

ALL = -1
"""As a number of log-probabilities: those of the whole vocabulary."""


@dataclass(frozen=True)
class Scoring:
    """How one sequence is scored.

    Args:
        ids: what is fed as the prompt.
        parameters: vLLM's SamplingParams.
        read: takes the log-probabilities of the wanted ids out of vLLM's output, shape (tokens, k), float32.
        values: how many log-probabilities vLLM will return.
    """

    ids: list[int]
    parameters: Any
    read: Callable[[Any], Array]
    values: int


class Scorer:
    """Plans the scoring of sequences for one engine.

    Newer versions of vLLM return the log-probabilities of given ids, if they run their second model runner, which needs
    Triton. Elsewhere those of the whole vocabulary are asked for, and the given ids picked.

    Args:
        llm: vLLM's LLM.
        vocab: number of ids of the model.
    """

    def __init__(self, llm: Any, vocab: int) -> None:
        from vllm import SamplingParams

        config = llm.llm_engine.vllm_config
        self.vocab = vocab
        self.context = int(config.model_config.max_model_len)
        self.picks_ids = hasattr(SamplingParams, "prompt_logprob_token_ids") and bool(
            getattr(config, "use_v2_model_runner", False)
        )

    def plan(self, given: Given, *, wide: bool) -> Scoring:
        """Return how to score a completion of at least one token.

        vLLM insists on generating a token. A sequence that fills the context leaves no room for one: then its last
        token is generated, by allowing no other; vLLM takes log-probabilities before it restricts the choice.

        Args:
            given: what to score.
            wide: other ids are wanted than the completion's own.
        """
        ids, first, wanted = [*given.prompt, *given.completion], len(given.prompt), given.wanted
        full = len(ids) == self.context
        if wide and self.picks_ids and not full:
            picked = {"prompt_logprob_token_ids": wanted, "prompt_logprob_start": first - 1}
            return Scoring(ids, _parameters(**picked), _read_picked, wanted.size)
        number = ALL if wide else 0
        settings: dict[str, Any] = {"prompt_logprobs": number, "flat_logprobs": True}
        if full:
            settings |= {"allowed_token_ids": [ids.pop()], "logprobs": number}
        read = partial(_read, wanted=wanted, first=first)
        return Scoring(ids, _parameters(**settings), read, len(ids) * (self.vocab if wide else 1))


def _parameters(**settings: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **settings
    )


def _read_picked(output: Any) -> Array:
    """Return the log-probabilities that vLLM picked itself, shape (tokens, k)."""
    return np.asarray(output.prompt_token_id_logprobs, dtype=np.float32)


def _read(output: Any, wanted: Array, first: int) -> Array:
    """Return the log-probabilities of wanted ids, shape (tokens, k), of which the first token is at a position."""
    scores = np.empty(wanted.shape, dtype=np.float32)
    for row, ids in enumerate(wanted):
        generated = first + row == len(output.prompt_token_ids)
        flat, position = (output.outputs[0].logprobs, 0) if generated else (output.prompt_logprobs, first + row)
        scores[row] = _look_up(flat, position, ids)
    return scores


def _look_up(flat: Any, position: int, ids: Sequence[int]) -> Array:
    """Return the log-probabilities of ids at a position of vLLM's flat lists."""
    span = slice(flat.start_indices[position], flat.end_indices[position])
    known, values = np.asarray(flat.token_ids[span]), np.asarray(flat.logprobs[span])
    order = np.argsort(known, kind="stable")
    return values[order[np.searchsorted(known, ids, sorter=order)]]
