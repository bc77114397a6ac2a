"""What the trust region costs: the solver in log-softmaxes, and two-model rollouts against each model decoding alone.

    python examples/benchmarks/trust_region.py [--rows 64] [--vocab 151936] [--threads 1]

Prints a Markdown table. The inputs look like a language model's: a few likely tokens and a long tail.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from esalign.distill import trust_region_blend


def seconds(work: Callable[[], object], *, repeats: int = 5) -> float:
    """Return the median time of some work, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    solver_table(options.rows, options.vocab)


if __name__ == "__main__":
    main()
