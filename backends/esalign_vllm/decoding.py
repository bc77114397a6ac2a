"""What vLLM is told for each sequence, and how its answers are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esalign.types import Array, Sampling

ALL = -1
"""As a number of log-probabilities: those of the whole vocabulary."""


def generation_parameters(sampling: Sampling, prompt: int, ends: Sequence[int]) -> Any:
    """Return vLLM's parameters for prompt j of a call.

    The seed comes from (seed, j) alone, so all candidates draw with the same luck. The random stream is vLLM's own:
    the same seed gives other answers than another engine's.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    random = sampling.temperature > 0.0
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p if random else 1.0,
        top_k=(sampling.top_k or -1) if random else -1,
        seed=stream_seed(sampling.seed, prompt) if random else None,
        stop=list(sampling.stop),
        stop_token_ids=list(ends),
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def stream_seed(seed: int, prompt: int) -> int:
    """Return the seed of prompt j's random stream, in [0, 2**63).

    >>> stream_seed(0, 1) == stream_seed(0, 1), stream_seed(0, 1) == stream_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence([seed % 2**64, prompt]).generate_state(1, np.uint64)[0] >> 1)


def scoring_parameters(last: int, *, whole: bool) -> Any:
    """Return vLLM's parameters to score a sequence of which all tokens but the last are fed as the prompt.

    vLLM insists on generating a token: it is made to be the last one, whose log-probability vLLM takes before it
    restricts the choice. So a sequence may fill the whole context.

    Args:
        last: the sequence's last token.
        whole: return the log-probabilities of the whole vocabulary, not of the given tokens alone.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        allowed_token_ids=[last],
        prompt_logprobs=ALL if whole else 0,
        logprobs=ALL if whole else 0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_scores(output: Any, answer: Sequence[int], support: Array | None) -> Array:
    """Return the log-probabilities of an answer, shape (tokens,), or of the support, shape (tokens, k), float32.

    Args:
        output: what vLLM returned for a request with `scoring_parameters`.
        answer: the answer's token ids, at least one.
        support: per token, the ids of interest, shape (tokens, k); None for the answer's own.
    """
    last = output.outputs[0].logprobs
    ids = np.asarray(answer)[:, None] if support is None else support
    scores = np.empty(ids.shape, dtype=np.float32)
    before = len(output.prompt_token_ids) - len(answer) + 1  # the prompt's own tokens
    for row in range(len(answer)):
        flat, position = (last, 0) if row == len(answer) - 1 else (output.prompt_logprobs, before + row)
        scores[row] = _look_up(flat, position, ids[row])
    return scores if support is not None else scores[:, 0]


def _look_up(flat: Any, position: int, ids: Array) -> Array:
    """Return the log-probabilities of ids at a position of vLLM's flat lists."""
    span = slice(flat.start_indices[position], flat.end_indices[position])
    known, values = np.asarray(flat.token_ids[span]), np.asarray(flat.logprobs[span])
    order = np.argsort(known, kind="stable")
    return values[order[np.searchsorted(known, ids, sorter=order)]]
