"""What the trust region costs: the solver in log-softmaxes, and two-model rollouts against each model decoding alone.

    python examples/benchmarks/trust_region.py [--rows 64] [--vocab 151936] [--rollout-vocab 32768] [--threads 1]

Prints Markdown tables, with the median and the least of a fixed number of repeats.
The inputs look like a language model's: a few likely tokens and a long tail.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from esalign.distill import trust_region_blend
from esalign.distill.behaviour import Schedule, TrustRegion, student_alone
from esalign.distill.decoder import Decoder
from esalign.distill.rollout import Pair, RolloutOptions, roll_out
from esalign.distill.vocabulary import SharedVocabulary
from esalign.engines.sampling import draw_uniforms, invert

BUDGETS = (1e-6, 0.001, 0.005, 0.02, 0.05, 0.5)


def seconds(*works: Callable[[], object], repeats: int) -> np.ndarray:
    """Return the times of some works, shape (works, repeats), taken in turns after one run of each to warm up."""
    times = np.zeros((len(works), repeats))
    for repeat in range(-1, repeats):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            if repeat >= 0:
                times[i, repeat] = time.perf_counter() - start
    return times


def both(times: np.ndarray) -> tuple[float, float]:
    """Return the median and the least of some times."""
    return float(np.median(times)), float(times.min())


def language_model_like(rows: int, vocab: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of a student and of a teacher that agrees with it roughly, shapes (rows, vocab)."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(rows, vocab, generator=generator).argsort(dim=-1).float()
    student = -1.5 * (rank + 1.0).log() + 0.5 * torch.randn(rows, vocab, generator=generator)
    return student, student + torch.randn(rows, vocab, generator=generator)


def solver_table(rows: int, vocab: int, *, repeats: int) -> None:
    """Print the cost of the solver for budgets of the paper and around them."""
    student, teacher = language_model_like(rows, vocab, seed=0)
    inputs = student.log_softmax(-1), teacher.log_softmax(-1)
    works = [lambda budget=budget: trust_region_blend(*inputs, budget) for budget in BUDGETS]
    unit, *solves = seconds(lambda: student.log_softmax(-1), *works, repeats=repeats)
    print(f"\n{rows} rows x {vocab} tokens, {repeats} repeats; one log-softmax: ", end="")
    print("{:.1f} ms median, {:.1f} least\n".format(*(1e3 * t for t in both(unit))))
    print("| budget (nats) | ms, median | ms, least | in log-softmaxes, median | least | mean beta |")
    print("|---|---|---|---|---|---|")
    for budget, solve, work in zip(BUDGETS, solves, works, strict=True):
        (median, least), (unit_median, unit_least) = both(solve), both(unit)
        cells = f"{1e3 * median:.0f} | {1e3 * least:.0f} | {median / unit_median:.1f} | {least / unit_least:.1f}"
        print(f"| {budget:g} | {cells} | {work().beta.mean().item():.3f} |")


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
    uniforms = torch.from_numpy(draw_uniforms(0, len(prompts), tokens))
    logits = decoder.read()
    for at in range(tokens):
        drawn = invert(vocabulary.logprobs(logits).exp(), uniforms[:, at])
        if at + 1 < tokens:
            logits = decoder.feed(drawn)


def rollout_table(vocab: int, *, sequences: int, tokens: int, repeats: int) -> None:
    """Print the throughput of rollouts by two models against each decoding alone, one after the other."""
    models = (
        random_model(layers=6, width=384, vocab=vocab, seed=0),
        random_model(layers=12, width=512, vocab=vocab, seed=1),
    )
    pair = Pair(*models, SharedVocabulary.of_one(vocab, []))
    prompts = [[1 + i, 2, 3, 4, 5, 6, 7, 8] for i in range(sequences)]
    options = RolloutOptions(max_tokens=tokens)
    behaviours = {"trust region, budget 0.02": TrustRegion(Schedule(0.02)), "plain OPD": student_alone()}
    student, teacher, *rollouts = seconds(
        *(lambda model=model: decode_alone(model, pair.vocabulary, prompts, tokens) for model in models),
        *(lambda behaviour=behaviour: roll_out(pair, prompts, behaviour, options) for behaviour in behaviours.values()),
        repeats=repeats,
    )
    rows = {"student alone": student, "student, then teacher, separately": student + teacher}
    rows |= dict(zip(behaviours, rollouts, strict=True))
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
    print(f"\nrollouts of {sequences} sequences x {tokens} tokens, vocabulary {vocab}, {repeats} repeats, ", end="")
    print(f"student {sizes[0]:.0f} M, teacher {sizes[1]:.0f} M parameters; speeds at the median, the least time\n")
    print("| | tokens/s | of separate decoding | of the student alone |\n|---|---|---|---|")
    for name, times in rows.items():
        cells = [", ".join(f"{sequences * tokens / t:.0f}" for t in both(times))]
        cells += [
            ", ".join(f"{base / t:.2f}" for base, t in zip(both(unit), both(times), strict=True))
            for unit in (student + teacher, student)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rollout-vocab", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    solver_table(options.rows, options.vocab, repeats=options.repeats)
    rollout_table(options.rollout_vocab, sequences=32, tokens=32, repeats=options.repeats)


if __name__ == "__main__":
    main()
