"""What the trust region costs: the solver in log-softmaxes, and two-model rollouts against each model decoding alone.

    python examples/benchmarks/trust_region.py [--rows 64] [--vocab 151936] [--rollout-vocab 32768] [--threads 1]

Prints a Markdown table. The inputs look like a language model's: a few likely tokens and a long tail.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from esalign.distill import trust_region_blend
from esalign.distill.behaviour import Schedule, TrustRegion, student_alone
from esalign.distill.decoder import Decoder
from esalign.distill.rollout import Pair, RolloutOptions, draw, draw_uniforms, roll_out
from esalign.distill.vocabulary import SharedVocabulary


def seconds(work: Callable[[], object], *, repeats: int = 5) -> float:
    """Return the least time of some work, which other processes disturb least, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def language_model_like(rows: int, vocab: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of a student and of a teacher that agrees with it roughly, shapes (rows, vocab)."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(rows, vocab, generator=generator).argsort(dim=-1).float()
    student = -1.5 * (rank + 1.0).log() + 0.5 * torch.randn(rows, vocab, generator=generator)
    return student, student + torch.randn(rows, vocab, generator=generator)


def solver_table(rows: int, vocab: int) -> None:
    """Print the cost of the solver for budgets of the paper and around them."""
    student, teacher = language_model_like(rows, vocab, seed=0)
    unit = seconds(lambda: student.log_softmax(-1))
    inputs = student.log_softmax(-1), teacher.log_softmax(-1)
    print(f"\n{rows} rows x {vocab} tokens; one log-softmax: {1e3 * unit:.1f} ms\n")
    print("| budget (nats) | time (ms) | in log-softmaxes | mean beta |\n|---|---|---|---|")
    for budget in (1e-6, 0.001, 0.005, 0.02, 0.05, 0.5):
        spent = seconds(lambda budget=budget: trust_region_blend(*inputs, budget))
        beta = trust_region_blend(*inputs, budget).beta.mean().item()
        print(f"| {budget:g} | {1e3 * spent:.0f} | {spent / unit:.1f} | {beta:.3f} |")


def random_model(*, layers: int, width: int, vocab: int, seed: int) -> Any:
    """Return a Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        initializer_range=0.05,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def decode_alone(model: Any, vocabulary: SharedVocabulary, prompts: list[list[int]], tokens: int) -> None:
    """Let one model answer by itself, by the same decoder that the rollouts use."""
    decoder = Decoder(model, prompts)
    uniforms = draw_uniforms(0, len(prompts), tokens)
    logits = decoder.read()
    for at in range(tokens):
        drawn = draw(vocabulary.logprobs(logits), uniforms[:, at])
        if at + 1 < tokens:
            logits = decoder.feed(drawn)


def rollout_table(vocab: int, *, sequences: int, tokens: int) -> None:
    """Print the throughput of rollouts by two models against each decoding alone, one after the other."""
    models = (
        random_model(layers=6, width=384, vocab=vocab, seed=0),
        random_model(layers=12, width=512, vocab=vocab, seed=1),
    )
    pair = Pair(*models, SharedVocabulary.of_one(vocab, []))
    prompts = [[1 + i, 2, 3, 4, 5, 6, 7, 8] for i in range(sequences)]
    alone = [seconds(lambda m=m: decode_alone(m, pair.vocabulary, prompts, tokens), repeats=3) for m in models]
    separate = sequences * tokens / sum(alone)
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
    print(f"\nrollouts of {sequences} sequences x {tokens} tokens, vocabulary {vocab}, ", end="")
    print(f"student {sizes[0]:.0f} M, teacher {sizes[1]:.0f} M parameters\n")
    print("| | tokens/s | of separate decoding | of the student alone |\n|---|---|---|---|")
    student = sequences * tokens / alone[0]
    print(f"| student alone | {student:.0f} | | 1.00 |")
    print(f"| student, then teacher, separately | {separate:.0f} | 1.00 | {separate / student:.2f} |")
    options = RolloutOptions(max_tokens=tokens)
    for name, behaviour in (("trust region, budget 0.02", TrustRegion(Schedule(0.02))), ("plain OPD", student_alone())):
        speed = sequences * tokens / seconds(lambda b=behaviour: roll_out(pair, prompts, b, options), repeats=3)
        print(f"| {name} | {speed:.0f} | {speed / separate:.2f} | {speed / student:.2f} |")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rollout-vocab", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    solver_table(options.rows, options.vocab)
    rollout_table(options.rollout_vocab, sequences=32, tokens=32)


if __name__ == "__main__":
    main()
