"""How fast is the torch engine: against PEFT, against itself without adapters, and on a GPU against its memory.

    python examples/benchmarks/torch_engine.py [--threads 2]

1. Answers as they come: 24 candidates, drawn as in the quickstart run, answer 64 Countdown problems with the embedded
   model; the rival is `set_adapter` and `generate` of PEFT, candidate by candidate, 64 prompts in a batch. Both must
   give the same tokens.
2. Answers of one length: the same batch with and without adapters, with the end of sequence taken from the model, so
   that both do the same work.
3. With a GPU (`--gpu` for this part alone): randomly initialised models in the shapes of Qwen2.5-0.5B and 7B,
   bfloat16, answers of one length: the engine with and without adapters, PEFT candidate by candidate (two of them
   stand for all), tokens per second, and the share of the time that reading the weights and the cache would take.

Runs take turns, and the fastest of each counts, so that a busy machine slows both alike. Processor seconds are shown
beside the seconds of the clock: on a busy machine they are the better measure.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from esalign.space import SvdLora
from esalign.space.adapter import Adapter, LoraModule
from esalign.types import Array, Completion, Sampling

EMBEDDED = Path(str(files("esalign"))) / "assets" / "embedded"
SHAPES = {
    "Qwen2.5-0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "heads": (14, 2)},
    "Qwen2.5-7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "heads": (28, 4)},
}


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=80, help="limit of the first part, as in the quickstart run")
    parser.add_argument("--length", type=int, default=40, help="tokens of every answer in the second part")
    parser.add_argument("--spread", type=float, default=0.5, help="standard deviation of the candidates")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--gpu", action="store_true", help="the third part alone")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    return parser.parse_args()


def pose_problems(count: int) -> list[str]:
    """Return Countdown problems as the quickstart run poses them."""
    import reasoning_gym

    numbers = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}
    return [problem["question"] for problem in reasoning_gym.create_dataset("countdown", size=count, seed=3, **numbers)]


@dataclass(frozen=True)
class Timing:
    """The least time of several runs."""

    seconds: float = float("inf")
    processor: float = float("inf")

    def row(self, name: str, tokens: int) -> str:
        """Return a line for people to read."""
        return f"  {name:<18}{self.seconds:7.2f} s  {self.processor:7.2f} s  {tokens / self.seconds:9.0f} tokens/s"


def race(*runners: Callable[[], Any], repeats: int) -> list[tuple[Timing, Any]]:
    """Let the runners take turns. Returns of each the least time, and its last result."""
    timings, results = [Timing()] * len(runners), [None] * len(runners)
    for _ in range(repeats):
        for number, run in enumerate(runners):
            clock, processor = time.perf_counter(), time.process_time()
            results[number] = run()
            least = timings[number]
            timings[number] = Timing(
                min(least.seconds, time.perf_counter() - clock), min(least.processor, time.process_time() - processor)
            )
    return list(zip(timings, results, strict=True))


def count_tokens(rows: Sequence[Sequence[Completion]]) -> int:
    """Return how many tokens were generated."""
    return sum(len(answer.token_ids) for row in rows for answer in row)


def compare_with_peft(options: argparse.Namespace, space: SvdLora, candidates: Array, prompts: list[str]) -> None:
    """Part 1."""
    from esalign_torch import TorchBackend

    backend = TorchBackend(EMBEDDED / "model", space, device="cpu", threads=options.threads)
    sampling = Sampling(max_tokens=options.max_tokens)
    (ours, rows), (theirs, rival_rows) = race(
        lambda: backend.generate(candidates, prompts, sampling),
        rival(space, candidates, prompts, options.max_tokens),
        repeats=options.repeats,
    )
    answers = [answer.token_ids for row in rows for answer in row]
    equal = np.mean([a == b for a, b in zip(answers, [x for row in rival_rows for x in row], strict=True)])
    tokens = count_tokens(rows)
    print(
        f"as they come: {tokens} tokens, {tokens / len(answers):.1f} per answer, the longest {max(map(len, answers))}"
    )
    print(ours.row("engine", tokens))
    print(theirs.row("PEFT", tokens))
    print(
        f"  {theirs.seconds / ours.seconds:.1f} times the throughput (target: 5), "
        f"{theirs.processor / ours.processor:.1f} by processor seconds; {equal:.2%} of the answers are equal"
    )


def rival(space: SvdLora, candidates: Array, prompts: list[str], max_tokens: int) -> Callable[[], list[list[Any]]]:
    """Return what one would write without this engine: all adapters in one PEFT model, one candidate at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED / "model", padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED / "model", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        names = [str(number) for number in range(len(candidates))]
        for name, candidate in zip(names, candidates, strict=True):
            space.save_pretrained(candidate, Path(folder) / name)
        model: Any = PeftModel.from_pretrained(base, str(Path(folder) / names[0]), adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(str(Path(folder) / name), adapter_name=name)
    model.eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    width, end = batch["input_ids"].shape[1], tokenizer.eos_token_id

    def cut(ids: list[int]) -> tuple[int, ...]:
        return tuple(ids[: ids.index(end) + 1] if end in ids else ids)

    def run() -> list[list[Any]]:
        rows = []
        for name in names:
            model.set_adapter(name)
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_tokens,
                do_sample=False,
            )
            rows.append([cut(ids) for ids in output[:, width:].tolist()])
        return rows

    return run


def compare_with_bare(options: argparse.Namespace, space: SvdLora, candidates: Array, prompts: list[str]) -> None:
    """Part 2."""
    from esalign_torch import TorchBackend

    with tempfile.TemporaryDirectory() as folder:
        model = without_end(EMBEDDED / "model", Path(folder) / "model")
        adapted = TorchBackend(model, space, device="cpu")
        bare = TorchBackend(model, None, device="cpu")
    sampling = Sampling(max_tokens=options.length)
    nobody = np.empty((len(candidates), 0))
    (ours, _), (limit, _) = race(
        lambda: adapted.generate(candidates, prompts, sampling),
        lambda: bare.generate(nobody, prompts, sampling),
        repeats=2 * options.repeats,
    )
    tokens = len(candidates) * len(prompts) * options.length
    print(f"of one length: {tokens} tokens")
    print(ours.row("with adapters", tokens))
    print(limit.row("without adapters", tokens))
    print(
        f"  {limit.seconds / ours.seconds:.2f} of the throughput without adapters (target: 0.85), "
        f"{limit.processor / ours.processor:.2f} by processor seconds"
    )


def without_end(source: Path, target: Path) -> Path:
    """Copy a model without its end of sequence, so that every answer is as long as the limit."""
    shutil.copytree(source, target)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((target / name).read_text())
        kept = {key: value for key, value in content.items() if key not in ("eos_token_id", "eos_token")}
        (target / name).write_text(json.dumps(kept))
    return target


def measure_gpu(name: str, candidates: int, prompts: int, *, length: int = 128) -> None:
    """Part 3, for one shape."""
    import torch
    from esalign_torch import TorchBackend

    with tempfile.TemporaryDirectory() as place:
        folder, space, weights = random_model(Path(place) / "model", **SHAPES[name])
        adapted = TorchBackend(folder, space, dtype="bfloat16", device="cuda")
        bare = TorchBackend(folder, None, dtype="bfloat16", device="cuda")
        vectors = np.random.default_rng(0).standard_normal((candidates, space.dim)) * 0.1
        ids = [tuple(np.random.default_rng(j).integers(10, 500, size=64).tolist()) for j in range(prompts)]
        few = Sampling(max_tokens=2)
        adapted.generate(vectors, ids, few)
        bare.generate(vectors[:, :0], ids, few)
        sampling = Sampling(max_tokens=length)
        (ours, rows), (limit, _) = race(
            lambda: adapted.generate(vectors, ids, sampling),
            lambda: bare.generate(vectors[:, :0], ids, sampling),
            repeats=2,
        )
        adapted.close()
        bare.close()
        torch.cuda.empty_cache()
        theirs = candidates / 2 * time_peft(folder, space, vectors[:2], ids, length)
    tokens, seconds = count_tokens(rows), ours.seconds
    shape = SHAPES[name]
    heads, kv_heads = shape["heads"]
    kv_token = 4 * shape["num_hidden_layers"] * kv_heads * (shape["hidden_size"] // heads)
    cache = candidates * prompts * kv_token * (64 + length / 2)
    least = length * (weights + cache) / memory_bandwidth(torch)
    print(f"{name} shape, {candidates} x {prompts} x {length} tokens, {torch.cuda.get_device_name()}")
    print(ours.row("engine", tokens))
    print(limit.row("without adapters", tokens))
    print(Timing(theirs, float("nan")).row("PEFT", tokens))
    print(
        f"  {theirs / seconds:.1f} times the throughput of PEFT, {limit.seconds / seconds:.2f} of that bare, "
        f"{least / seconds:.0%} of the memory-bandwidth limit",
        flush=True,
    )


def time_peft(folder: Path, space: SvdLora, vectors: Array, ids: list[tuple[int, ...]], length: int) -> float:
    """Return the seconds that PEFT takes for two candidates, one after another, after a first short answer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    model: Any = factory.from_pretrained(folder, dtype=torch.bfloat16).to("cuda")
    for number, vector in enumerate(vectors):
        space.save_pretrained(vector, folder / str(number))
        if number:
            model.load_adapter(str(folder / str(number)), adapter_name=str(number))
        else:
            model = PeftModel.from_pretrained(model, str(folder / "0"), adapter_name="0")
    model.eval()
    batch = torch.tensor(ids, device="cuda")
    began = 0.0
    for new in (2, length):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for number in range(len(vectors)):
            model.set_adapter(str(number))
            model.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        torch.cuda.synchronize()
    return time.perf_counter() - began


def random_model(
    folder: Path, *, hidden_size: int, intermediate_size: int, num_hidden_layers: int, heads: tuple[int, int]
) -> tuple[Path, SvdLora, int]:
    """Write a random model without an end of sequence. Returns it, a random space of it, and its bytes."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=hidden_size < 2048,
    )
    with torch.device("cuda"):
        factory: Any = AutoModelForCausalLM
        model = factory.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    shutil.copy(EMBEDDED / "model" / "tokenizer.json", folder)
    tokenizer = json.loads((EMBEDDED / "model" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": None}))
    return folder, random_space(model), sum(p.numel() * p.element_size() for p in model.parameters())


def random_space(model: Any, rank: int = 8) -> SvdLora:
    """Return the space of a random adapter on the attention of a model."""
    rng = np.random.default_rng(0)
    modules = tuple(
        LoraModule(
            name,
            A=rng.standard_normal((rank, layer.in_features), dtype=np.float32) / np.sqrt(layer.in_features),
            B=rng.standard_normal((layer.out_features, rank), dtype=np.float32) * 0.01,
            scaling=2.0,
        )
        for name, layer in model.named_modules()
        if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))
    )
    return SvdLora(Adapter({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}, modules))


def memory_bandwidth(torch: Any) -> float:
    """Measure the bytes per second that the GPU copies, reads and writes counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2 * source.numel() / (time.perf_counter() - start)


def main() -> None:
    """Run what the machine can."""
    import torch

    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.gpu:
        measure_cpu(options)
    if options.gpu or torch.cuda.is_available():
        for name in SHAPES:
            measure_gpu(name, options.candidates, options.prompts)


def measure_cpu(options: argparse.Namespace) -> None:
    """Parts 1 and 2."""
    import torch

    space = SvdLora.from_pretrained(EMBEDDED / "adapter")
    noise = np.random.default_rng(0).standard_normal((options.candidates, space.dim))
    prompts = pose_problems(options.prompts)
    print(f"{options.candidates} candidates x {options.prompts} prompts, {torch.get_num_threads()} threads")
    compare_with_peft(options, space, options.spread * noise, prompts)
    compare_with_bare(options, space, options.spread * noise, prompts)


if __name__ == "__main__":
    main()
