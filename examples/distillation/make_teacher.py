"""Make a teacher for the embedded model: the same model, trained further on its most reliable style alone.

    python examples/distillation/make_teacher.py --out build/teacher

The embedded model has read answers of differing reliability and imitates them all. The teacher has gone on with the
careful ones: a search that writes its checks down and never errs.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch

from esalign.assemble import model_path
from esalign.config import EMBEDDED

sys.path.insert(0, str(Path(__file__).parents[1] / "embedded_model"))
from make_data import Mixture, countdown  # the folder beside this one
from pretrain import encode, loss_of, to_tensors

CAREFUL = Mixture(weights={"search": 1.0}, careless={"search": 0.0})


def train(model: Any, tokenizer: Any, *, steps: int, sequences: int, rate: float, seed: int) -> None:
    """Train all weights on careful answers, with a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rng = Random(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = encode(tokenizer, [countdown(rng, CAREFUL) for _ in range(sequences)])
        loss = loss_of(model, *to_tensors(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)


def main() -> None:
    """Make the teacher."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/teacher"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_path(EMBEDDED))
    model = AutoModelForCausalLM.from_pretrained(model_path(EMBEDDED))
    train(model, tokenizer, steps=options.steps, sequences=options.sequences, rate=options.rate, seed=options.seed)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"teacher: {options.out}")


if __name__ == "__main__":
    main()
