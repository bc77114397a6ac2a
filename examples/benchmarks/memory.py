"""Where the memory of a generation goes, and how it grows with population, prompts, tokens and model.

    python examples/benchmarks/memory.py

The torch engine in float32 on a CPU, space base-svd of rank 8 in the attention. Every line is a process of its own,
which imports, loads, and completes one generation of prompts of 30 tokens, mostly to the full length. The models are of
the embedded one's kind, with random weights, as memory does not depend on what they say.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

MODELS = {"0.9M": (128, 4), "27M": (512, 8), "164M": (1024, 12)}
"""Width and layers by number of weights."""
PROMPT_TOKENS = 30


@dataclass(frozen=True)
class Shape:
    """One generation."""

    model: str = "0.9M"
    population: int = 24
    prompts: int = 24
    tokens: int = 80


BASE = Shape()
SHAPES = (
    BASE,
    *(replace(BASE, population=number) for number in (96, 384)),
    *(replace(BASE, prompts=number) for number in (96, 384)),
    *(replace(BASE, tokens=number) for number in (20, 200)),
    *(replace(BASE, model=name) for name in list(MODELS)[1:]),
)


def make_model(name: str, folder: Path) -> str:
    """Write a model of the embedded kind with random weights, which seldom ends a completion. Returns the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from esalign.assets import asset

    embedded = asset("embedded/model")
    width, layers = MODELS[name]
    heads = width // 32
    config = AutoConfig.from_pretrained(embedded)
    config.update({"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers})
    config.update({"num_attention_heads": heads, "num_key_value_heads": heads})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded).save_pretrained(folder)
    return str(folder)


def measure(shape: Shape, model: str) -> dict[str, float]:
    """Return the memory of this process, in MiB: after the imports, after loading, and its peak in one generation."""
    import psutil

    def resident() -> float:
        return float(psutil.Process().memory_info().rss / 2**20)

    bare = resident()
    import torch
    import transformers  # noqa: F401 - what is measured

    torch.set_num_threads(1)
    imported = resident()
    from esalign import Sampling, load_backend, make_space
    from esalign.run.progress import peak_memory

    space = make_space("base-svd", model=model, rank=8)
    backend = load_backend("torch", model=model, space=space, dtype="float32", device="cpu", threads=1)
    loaded = resident()
    rng = np.random.default_rng(0)
    candidates = rng.standard_normal((shape.population, space.dim))
    prompts = [tuple(rng.integers(4, 250, PROMPT_TOKENS).tolist()) for _ in range(shape.prompts)]
    backend.generate(candidates, prompts, Sampling(max_tokens=shape.tokens))
    return {"bare": bare, "imported": imported, "loaded": loaded, "peak": peak_memory()["peak_rss_mib"]}


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", metavar="SHAPE")
    parser.add_argument("--model", help="folder of the shape's model")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(Shape(**json.loads(options.alone)), options.model)))
        return
    print("| model | candidates | prompts | tokens | Python | imports | model and space | generation | peak, MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            own = ["--alone", json.dumps(asdict(shape)), "--model", make_model(shape.model, Path(folder))]
            done = subprocess.run([sys.executable, __file__, *own], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        steps = [found["bare"], *np.diff([found[key] for key in ("bare", "imported", "loaded", "peak")])]
        cells = [*asdict(shape).values(), *(f"{step:.0f}" for step in steps), f"{found['peak']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
