"""How fast vLLM evaluates a population, and what a switch of candidates costs, on a model of random weights.

    python examples/benchmarks/vllm_engine.py [--candidates 32] [--prompts 8] [--rounds 3]

The same sequences are generated without LoRA, in shared-basis mode, and by vLLM as it comes, with adapters that are
loaded already: in one multi-LoRA call, and candidate by candidate. "Slots" is the backend's fallback, which spares
vLLM's kernels the layers without an adapter. Rounds are interleaved, and ratios taken within a round, so that a busy
machine disturbs them less; their medians are printed, as Markdown, by the clock and by processor time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is imported

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from esalign_vllm import VllmBackend
from esalign_vllm.engine import Engine
from esalign_vllm.environment import IN_PROCESS, defaults, preserved_process, quietly

from esalign.space import SvdLora
from esalign.space.adapter import Adapter, LoraModule, write_adapter
from esalign.types import Array, Completion, Sampling

WIDTH, LAYERS, HEADS, VOCAB, CONTEXT = 384, 8, 6, 4096, 256
END = VOCAB - 1
SHARED, LAST = "shared basis, one call", "candidate by candidate"
EMPTY = Completion("", (), "length")


def make_model(folder: Path, rank: int) -> tuple[Path, SvdLora, int]:
    """Write a random Llama that never ends an answer. Returns it with a random space around it, and its parameters."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        eos_token_id=END,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight[END])  # a logit of 0 is never the highest
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"w{END}").save_pretrained(folder)
    generator = np.random.default_rng(0)
    modules = tuple(
        LoraModule(
            f"model.layers.{layer}.self_attn.{name}_proj",
            (generator.standard_normal((rank, WIDTH)) / WIDTH**0.5).astype(np.float32),
            (generator.standard_normal((WIDTH, rank)) / rank**0.5).astype(np.float32),
            1.0,
        )
        for layer in range(LAYERS)
        for name in "kqvo"
    )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [f"{n}_proj" for n in "kqvo"]}
    adapter = write_adapter(Adapter(settings, modules), folder / "adapter")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return folder, SvdLora.from_pretrained(adapter), parameters


class StockVllm:
    """vLLM as its documentation has it: adapter folders, loaded once, and a LoRARequest per prompt.

    Args:
        model: folder of the model.
        space: the search space.
        candidates: search vectors, shape (population, dim), whose adapters are loaded.
        max_tokens: of each answer.
        settings: further arguments of ``vllm.LLM``.
    """

    def __init__(self, model: Path, space: SvdLora, candidates: Any, max_tokens: int, settings: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        rank = max(8, space.modules[0].rank)
        with preserved_process(), defaults(IN_PROCESS), quietly():
            self.llm = LLM(
                model=str(model),
                dtype="float32",
                enforce_eager=True,
                enable_lora=True,
                max_loras=len(candidates),
                max_lora_rank=rank,
                use_tqdm_on_load=False,
                **settings,
            )
        folders = [space.save_pretrained(c, model / f"adapter{i}") for i, c in enumerate(candidates)]
        self.adapters = [LoRARequest(f"candidate{i}", i + 1, str(folder)) for i, folder in enumerate(folders)]
        self.parameters = SamplingParams(max_tokens=max_tokens, temperature=0.0, detokenize=False)

    def generate(self, numbers: Iterable[int], prompts: list[list[int]]) -> list[list[Any]]:
        """Answer every prompt with the candidates of these numbers, in one call."""
        work = [({"prompt_token_ids": ids}, self.adapters[i]) for i in numbers for ids in prompts]
        inputs, adapters = ([pair[k] for pair in work] for k in (0, 1))
        outputs = self.llm.generate(inputs, self.parameters, lora_request=adapters, use_tqdm=False)
        answers = [replace(EMPTY, token_ids=tuple(output.outputs[0].token_ids)) for output in outputs]
        return [answers[start : start + len(prompts)] for start in range(0, len(answers), len(prompts))]

    def close(self) -> None:
        """Stop vLLM."""
        self.llm.llm_engine.engine_core.shutdown()


def measure(work: Callable[[], list[list[Any]]]) -> Array:
    """Return generated tokens per second of the clock, and per second of processor time."""
    start = np.array([time.perf_counter(), time.process_time()])
    rows = work()
    spent = np.array([time.perf_counter(), time.process_time()]) - start
    return sum(len(answer.token_ids) for row in rows for answer in row) / spent


def compare_throughput(model: Path, space: SvdLora, options: argparse.Namespace) -> None:
    """Print the table of throughputs."""
    generator = np.random.default_rng(1)
    population = options.candidates
    candidates = generator.standard_normal((population, space.dim)) * 0.3
    prompts = [generator.integers(0, END, 16 + j % 8).tolist() for j in range(options.prompts)]
    sampling = Sampling(max_tokens=options.tokens)
    settings: dict[str, Any] = {
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 512 << 20,
    }  # the bare model's prompts repeat
    bare = VllmBackend(model, None, **settings)
    shared = VllmBackend(model, space, mode="shared-basis", slots=population, **settings)
    slots = VllmBackend(model, space, mode="slots", slots=population, **settings)
    stock = StockVllm(model, space, candidates, options.tokens, settings)
    variants: dict[str, Callable[[], list[list[Any]]]] = {
        "no LoRA": lambda: bare.generate(np.zeros((population, 0)), prompts, sampling),
        SHARED: lambda: shared.generate(candidates, prompts, sampling),
        "slots, one call": lambda: slots.generate(candidates, prompts, sampling),
        "stock multi-LoRA, one call": lambda: stock.generate(range(population), prompts),
        LAST: lambda: [stock.generate([i], prompts)[0] for i in range(population)],
    }
    for name, work in variants.items():
        if name != LAST:  # its engine is warm by then
            work()
    speeds = {name: np.empty((options.rounds, 2)) for name in variants}  # by the clock, by processor time
    for number in range(options.rounds):
        for name, work in variants.items():
            speeds[name][number] = measure(work)
    print("\n| | tokens/s | of no LoRA | shared basis is faster by | by processor time: of no LoRA | faster by |")
    print("|---|---|---|---|---|---|")
    for name, speed in speeds.items():
        share, gain = (np.median(a / b, axis=0) for a, b in ((speed, speeds["no LoRA"]), (speeds[SHARED], speed)))
        cells = (f"{np.median(speed[:, 0]):.0f}", *(f"{r[k]:.2f}" for k in (0, 1) for r in (share, gain)))
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nwanted of shared basis: at least 0.8 of no LoRA, 2 times stock multi-LoRA, 3 times candidate by candidate")
    same = sum(
        a.token_ids == b.token_ids
        for left, right in zip(variants[SHARED](), variants["stock multi-LoRA, one call"](), strict=True)
        for a, b in zip(left, right, strict=True)
    )
    print(f"\nequal answers of shared basis and stock multi-LoRA: {same} of {population * len(prompts)}")
    for backend in (bare, shared, slots, stock):
        backend.close()


def switch(engine: Engine, vectors: Any) -> None:
    """Make candidates current, to the point where vLLM could run them."""
    with engine.candidates(vectors) as adapters:
        if engine.mode == "files":
            for adapter in adapters:
                engine.llm.llm_engine.add_lora(adapter)


def compare_switches(model: Path, space: SvdLora, options: argparse.Namespace) -> None:
    """Print what it costs to make a population current, from search vectors to ready."""
    generator = np.random.default_rng(2)
    costs = {}
    for mode, repeats in (("shared-basis", 50), ("slots", 10), ("files", 3)):
        backend = VllmBackend(model, space, mode=mode, slots=options.candidates)
        times = []
        for _ in range(repeats + 1):
            vectors = generator.standard_normal((options.candidates, space.dim)) * 0.3
            start = time.perf_counter()
            switch(backend.engine, vectors)
            times.append(time.perf_counter() - start)
        costs[mode] = statistics.median(times[1:])
        backend.close()
    print(f"\n| switch of {options.candidates} candidates | ms | per candidate (ms) |\n|---|---|---|")
    for mode, cost in costs.items():
        print(f"| {mode} | {1e3 * cost:.2f} | {1e3 * cost / options.candidates:.3f} |")
    print(f"\nfiles / shared basis: {costs['files'] / costs['shared-basis']:.0f} (wanted: at least 100)")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("candidates", 32), ("prompts", 8), ("tokens", 32), ("rank", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, space, parameters = make_model(Path(folder), options.rank)
        shape = json.dumps({k: getattr(options, k) for k in ("candidates", "prompts", "tokens", "rank")})
        print(
            f"{parameters / 1e6:.1f}M parameters, dim {space.dim}, {shape}, {os.environ['OMP_NUM_THREADS']} thread(s)"
        )
        for part in options.parts:
            PARTS[part](model, space, options)
            sys.stdout.flush()


PARTS = {"throughput": compare_throughput, "switches": compare_switches}

if __name__ == "__main__":
    main()
