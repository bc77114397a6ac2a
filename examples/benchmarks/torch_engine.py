"""How fast the torch engine evaluates a population, against what a user would do instead and against no adapter at all.

    python examples/benchmarks/torch_engine.py [--candidates 24] [--prompts 64] [--tokens 40] [--rounds 3] [--threads 1]

On the embedded model, the same prompts are answered by the whole population in one call; by the same engine and batch
without adapters, which is its limit; and by PEFT's ``set_adapter`` and ``generate``, candidate by candidate, each with
all prompts as one batch. Answers have different lengths, so tokens per second are compared. Rounds are interleaved, and
ratios taken within a round, so that a busy machine disturbs them less; medians are printed, as Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import esalign
from esalign.assemble import asset
from esalign.data import load_examples
from esalign.types import Array

TASK = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}


def load_peft(space: esalign.SvdLora, candidates: Array, folder: Path) -> PeftModel:
    """Return the base model with every candidate's folded adapter loaded, named by its number."""
    base = AutoModelForCausalLM.from_pretrained(asset("embedded/model")).eval()
    for number, candidate in enumerate(candidates):
        space.save_pretrained(candidate, folder / str(number))
    model = PeftModel.from_pretrained(base, str(folder / "0"), adapter_name="0")
    for number in range(1, len(candidates)):
        model.load_adapter(str(folder / str(number)), adapter_name=str(number))
    return model


@torch.inference_mode()
def answer_with_peft(model: PeftModel, population: int, prompts: list[tuple[int, ...]], tokens: int) -> int:
    """Answer all prompts, candidate by candidate, and return the number of generated tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generated = 0
    for number in range(population):
        model.set_adapter(str(number))
        rows = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        generated += int((rows[:, width:] != 0).sum())
    return generated


def tokens_per_second(generate: Callable[[], int]) -> float:
    """Return the speed of one call, which says how many tokens it generated."""
    began = time.perf_counter()
    return generate() / (time.perf_counter() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("candidates", 24), ("prompts", 64), ("tokens", 40), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    space = esalign.SvdLora.from_pretrained(asset("embedded/adapter"))
    candidates = np.random.default_rng(0).standard_normal((options.candidates, space.dim)) * 0.3
    model = str(asset("embedded/model"))
    engine = esalign.load_backend("torch", model=model, space=space, dtype="float32", device="cpu")
    bare = esalign.load_backend("torch", model=model, space=None, dtype="float32", device="cpu")
    examples = load_examples("reasoning-gym:countdown", options=TASK, size=options.prompts)
    prompts = [engine.encode(example.prompt) for example in examples]
    sampling = esalign.Sampling(max_tokens=options.tokens)

    def population(backend: esalign.Backend, vectors: Array) -> int:
        rows = backend.generate(vectors, prompts, sampling)
        return sum(len(completion.token_ids) for row in rows for completion in row)

    with tempfile.TemporaryDirectory() as folder:
        peft = load_peft(space, candidates, Path(folder))
        ways = {
            "population in one call": lambda: population(engine, candidates),
            "without adapters (the limit)": lambda: population(bare, np.empty((options.candidates, 0))),
            "PEFT, one after another": lambda: answer_with_peft(peft, options.candidates, prompts, options.tokens),
        }
        for way in ways.values():
            way()
        rounds = [{name: tokens_per_second(way) for name, way in ways.items()} for _ in range(options.rounds)]
    print(f"{options.candidates} candidates x {options.prompts} prompts, {options.threads} threads\n")
    print("| | tokens per second | population in one call, relative to it |\n|---|---|---|")
    for name in ways:
        ratio = statistics.median(row["population in one call"] / row[name] for row in rounds)
        print(f"| {name} | {statistics.median(row[name] for row in rounds):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
