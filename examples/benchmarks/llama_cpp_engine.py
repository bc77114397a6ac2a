"""What a switch of candidates costs in llama.cpp, and how fast a population is answered, on a model of random weights.

    python examples/benchmarks/llama_cpp_engine.py [--kinds f16 q8_0 q4_0] [--quick]

1. One candidate's switch: rewriting the adapter in place, patching a file in memory and loading it, and writing a GGUF
   adapter to the disk and loading it, as one does by hand.
2. CPU time of answering: our batches of 32 sequences, and the high-level API of llama-cpp-python, one prompt after
   another. CPU time, as a busy machine disturbs it less than the clock.
Memory over many switches is in switch_memory.py.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from esalign_llama_cpp import LlamaCppBackend, convert_model, quantize_model
from esalign_llama_cpp.library import load_library
from esalign_llama_cpp.lora import write_gguf_adapter
from esalign_llama_cpp.switch import free_adapter, load_adapter

from esalign.space import SvdLora
from esalign.space.adapter import Adapter, LoraModule
from esalign.types import Sampling

WIDTH, LAYERS, HEADS, INNER, VOCAB, CONTEXT = 512, 8, 8, 1408, 4096, 256
SHAPES = {
    "self_attn": dict.fromkeys("qkvo", (WIDTH, WIDTH)),
    "mlp": {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)},
}
END = VOCAB - 1


def make_model(folder: Path) -> tuple[Path, int]:
    """Write a random Llama that hardly ends an answer. Returns its folder and its number of parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        eos_token_id=END,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight[END])  # a logit of 0 is never the highest
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: number for number, letter in enumerate(letters)}
    words |= {f"w{number}": number for number in range(len(letters), END - 1)} | {"ab": END - 1, "</s>": END}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return folder, sum(parameter.numel() for parameter in model.parameters())


def make_space(rank: int) -> SvdLora:
    """Return a random space on all linear layers."""
    generator = np.random.default_rng(0)
    modules = tuple(
        LoraModule(
            f"model.layers.{layer}.{part}.{name}_proj",
            (generator.standard_normal((rank, wide)) / wide**0.5).astype(np.float32),
            (generator.standard_normal((out, rank)) / rank**0.5 / 4).astype(np.float32),
            1.0,
        )
        for layer in range(LAYERS)
        for part, names in SHAPES.items()
        for name, (out, wide) in names.items()
    )
    return SvdLora(Adapter({}, modules))


def median_ms(work: Callable[[int], None], repeats: int) -> float:
    """Return the median time of a piece of work, in ms, after two that do not count."""
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def start(model: Path, space: SvdLora, **options: Any) -> LlamaCppBackend:
    """Return an engine that has answered once, so that its context is there."""
    backend = LlamaCppBackend(model, space, threads=1, **options)
    backend.generate(np.zeros((1, space.dim)), [[1, 2]], Sampling(max_tokens=1))
    return backend


def compare_switches(model: Path, space: SvdLora, folder: Path, repeats: int) -> None:
    """Print what one candidate's switch costs, given its singular values or its LoRA factors."""
    vectors = np.random.default_rng(1).standard_normal((repeats + 2, space.dim)) * 0.3
    pairs = space.singular_values(vectors)
    costs = {}
    for method in ("in-place", "files"):
        backend = start(model, space, method=method)
        engine = backend._engine  # noqa: SLF001  (the switch alone is measured)

        def switch(number: int, engine: Any = engine) -> None:
            engine._switch.select([(a[number], b[number]) for a, b in pairs], engine._context)  # noqa: SLF001

        costs[method] = median_ms(switch, repeats)
        backend.close()
    backend = start(model, space, method="in-place")
    engine, adapters = backend._engine, []  # noqa: SLF001
    folded = [space.fold(vector) for vector in vectors[: max(5, repeats // 10) + 2]]

    def write_and_load(number: int) -> None:
        path = folder / "candidate.gguf"
        write_gguf_adapter(folded[number], path, engine.model.architecture, engine.model.heads)
        adapters.append(load_adapter(engine.model, path))
        engine._context.use(adapters[-1])  # noqa: SLF001
        engine._context.clear()  # noqa: SLF001
        if len(adapters) > 1:
            free_adapter(engine.model, adapters.pop(0))

    costs["write"] = median_ms(write_and_load, len(folded) - 2)
    engine._context.use(None)  # noqa: SLF001
    free_adapter(engine.model, adapters.pop())
    backend.close()
    print("\n| switching one candidate | median ms | in place is cheaper by |\n|---|---|---|")
    for name, label in (
        ("in-place", "rewrite in place"),
        ("files", "patch a file in memory, load, set"),
        ("write", "write a GGUF adapter, load, set"),
    ):
        print(f"| {label} | {costs[name]:.3f} | {costs[name] / costs['in-place']:.1f} |")
    print(f"\nwrite and load / in place: {costs['write'] / costs['in-place']:.0f} (wanted: at least 20)")


def compare_decoding(model: Path, space: SvdLora, folder: Path, kind: str, options: argparse.Namespace) -> None:
    """Print the CPU time of answering, against that of the high-level API."""
    generator = np.random.default_rng(2)
    prompts = [generator.integers(0, END, 12 + j % 16).tolist() for j in range(options.prompts)]
    vector = generator.standard_normal(space.dim) * 0.3
    quantized = model if kind == "f16" else quantize_model(model, folder / f"{kind}.gguf", kind)
    adapter = folder / "one.gguf"
    backend = start(quantized, space, sequences=32)
    write_gguf_adapter(space.fold(vector), adapter, "llama", (HEADS, HEADS))
    other = high_level(quantized, adapter)
    variants: dict[str, Callable[[], list[list[int]]]] = {
        "ours": lambda: answer_ours(backend, vector, prompts, options.tokens),
        "high-level": lambda: [answer_high_level(other, prompt, options.tokens) for prompt in prompts],
    }
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds + 1):
        costs, answers = {}, {}
        for name, work in variants.items():
            begin = time.process_time()
            answers[name] = work()
            costs[name] = (time.process_time() - begin) / sum(map(len, answers[name]))
        rounds.append(costs)
    ours, theirs = (1e3 * statistics.median(r[name] for r in rounds[1:]) for name in variants)
    ratio = statistics.median(r["high-level"] / r["ours"] for r in rounds[1:])
    same = sum(a == b for a, b in zip(answers["ours"], answers["high-level"], strict=True))
    print(f"| {kind} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} | {same} of {len(prompts)} |", flush=True)
    backend.close()
    other.close()


def answer_ours(backend: LlamaCppBackend, vector: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Answer all prompts in common batches."""
    rows = backend.generate(vector[None], prompts, Sampling(max_tokens=tokens))
    return [list(answer.token_ids) for answer in rows[0]]


def high_level(model: Path, adapter: Path) -> Any:
    """Load a model by the high-level API, with one candidate's adapter."""
    from llama_cpp import Llama

    settings = {"n_ctx": CONTEXT, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "no_perf": True}
    made = Llama(str(model), lora_path=str(adapter), **settings)
    load_library()
    return made


def answer_high_level(llama: Any, prompt: list[int], tokens: int) -> list[int]:
    """Answer one prompt greedily by the high-level API."""
    llama.reset()
    answer: list[int] = []
    for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        answer.append(token)
        if len(answer) == tokens or token == END:
            break
    return answer


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 64), ("tokens", 24), ("rank", 16), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", nargs="+", default=["f16", "q8_0", "q4_0"], help="weights to answer with")
    parser.add_argument("--quick", action="store_true", help="few repetitions: figures are rough")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.rounds = 32, 1
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        source, parameters = make_model(folder / "model")
        model = convert_model(source, folder / "f16.gguf", kind="f16")
        space = make_space(options.rank)
        print(
            f"{parameters / 1e6:.1f}M parameters, rank {options.rank} on all linear layers, dim {space.dim}, 1 thread"
        )
        compare_switches(model, space, folder, repeats=20 if options.quick else 300)
        print(
            f"\n{options.prompts} prompts of 12 to 27 tokens, {options.tokens} new ones each, 32 sequences, CPU time\n"
        )
        print("| weights | ours, ms/token | high-level API, ms/token | ratio | equal answers |\n|---|---|---|---|---|")
        for kind in options.kinds:
            compare_decoding(model, space, folder, kind, options)
        print("(wanted at q8_0: at least 1.8)")


if __name__ == "__main__":
    main()
