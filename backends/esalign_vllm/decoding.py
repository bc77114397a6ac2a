"""What vLLM is told for each sequence to generate."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esalign.engines.sampling import seed_sequence
from esalign.types import Sampling


def generation_parameters(sampling: Sampling, prompt: int, ends: Sequence[int], *, special: bool = False) -> Any:
    """Return vLLM's parameters for prompt j of a call.

    The seed, in [0, 2**63), comes from (seed, offset + j) alone, so all candidates draw with the same luck. The random
    stream is vLLM's own: the same seed gives other completions than another engine's.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    random = sampling.draws(prompt)
    seed = int(seed_sequence(sampling.seed, sampling.offset + prompt).generate_state(1, np.uint64)[0] >> 1)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature if random else 0.0,
        top_p=sampling.top_p if random else 1.0,
        top_k=(sampling.top_k or -1) if random else -1,
        seed=seed if random else None,
        stop=list(sampling.stop),
        stop_token_ids=list(ends),
        detokenize=bool(sampling.stop),
        skip_special_tokens=not special,  # stop strings that hold one are only found where they are shown
        output_kind=RequestOutputKind.FINAL_ONLY,
        logprobs=0 if sampling.logprob else None,  # of the chosen tokens, before the temperature
    )
