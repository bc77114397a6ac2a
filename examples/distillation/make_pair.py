"""Make a student and a teacher out of the embedded model, which shall add chains of four to six numbers.

    python examples/distillation/make_pair.py

The embedded model has read sums of two or three digits, answered at once. The teacher is the same model, all of whose
weights went on to read sums with every partial sum written down, ``3 + 5 = 8, 8 - 9 = -1, ...``. The student has read
fewer of them: it writes them down too, and soon goes astray, to where the teacher has never been. The adapter makes
another student of the embedded model, a still weaker one, for learning without gradients.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch

from esalign.assets import EMBEDDED, model_path

sys.path.insert(0, str(Path(__file__).parents[1] / "embedded_model"))
from make_data import CHAIN_SUM, OPERATORS, Document  # the folder beside this one
from pretrain import encode, loss_of, to_tensors

TERMS = (4, 5, 6)


def written_sum(rng: Random) -> Document:
    """Write one answered ``chain_sum`` problem, with all partial sums and the answer."""
    value = rng.randint(0, 9)
    expression, steps = str(value), []
    for _ in range(rng.choice(TERMS) - 1):
        number, operator = rng.randint(0, 9), rng.choice("+-")
        result = OPERATORS[operator](value, number)
        expression += f" {operator} {number}"
        steps.append(f"{value} {operator} {number} = {result}")
        value = result
    answer = ", ".join(steps) + f"\n<answer>{value}</answer>"
    return Document(CHAIN_SUM.format(expression=expression), answer, "written")


def train(model: Any, core: Any, tokenizer: Any, *, steps: int, rate: float, seed: int) -> None:
    """Train what requires gradients on written sums, 64 a step, with a cosine schedule.

    Args:
        model: with or without adapter.
        core: the causal language model itself.
        tokenizer: its tokenizer.
        steps: updates.
        rate: the highest learning rate.
        seed: of the sums.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    rng = Random(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(core, *to_tensors(encode(tokenizer, [written_sum(rng) for _ in range(64)])))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == steps:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)


def make_model(model: Any, tokenizer: Any, folder: Path, *, steps: int, seed: int) -> None:
    """Train all weights."""
    train(model, model, tokenizer, steps=steps, rate=2e-3, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"model: {folder}")


def make_adapter(model: Any, tokenizer: Any, folder: Path, *, steps: int, seed: int) -> None:
    """Train an adapter for a little while."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    train(adapted, adapted.get_base_model(), tokenizer, steps=steps, rate=1e-2, seed=seed)
    adapted.save_pretrained(folder)
    print(f"adapter: {folder}")


def main() -> None:
    """Make the three."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/pair"))
    parser.add_argument("--parts", nargs="+", default=["student", "adapter", "teacher"])
    out, parts = vars(parser.parse_args()).values()
    torch.set_num_threads(1)
    plan = {  # part: how, for how many steps, with which seed
        "student": (make_model, 250, 1),
        "adapter": (make_adapter, 120, 1),
        "teacher": (make_model, 600, 0),
    }
    for part in parts:
        make, steps, seed = plan[part]
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(model_path(EMBEDDED))
        model = AutoModelForCausalLM.from_pretrained(model_path(EMBEDDED))
        make(model, tokenizer, out / part, steps=steps, seed=seed)


if __name__ == "__main__":
    main()
