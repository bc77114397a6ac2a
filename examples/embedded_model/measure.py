"""Measure how reliable each style of the embedded model is: force its first words, and let reasoning-gym judge.

Problems whose three numbers no Countdown text held are told apart from those with numbers that were seen.
"""

import argparse
from random import Random
from typing import TYPE_CHECKING

from make_data import TEMPLATES, Problem, chain_sum, draw_problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STYLES = {"free": "", "direct": "<answer>", "worked": "First ", "search": "Try "}
MAX_TOKENS = 80


def load(model: str, adapter: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model, with the adapter if there is one, and its tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model).eval()
    return PeftModel.from_pretrained(base, adapter) if adapter else base, AutoTokenizer.from_pretrained(model)


def draw(num_problems: int, *, held_out: bool, seed: int) -> list[tuple[Problem, str]]:
    """Return problems with their questions."""
    rng = Random(seed)
    found = []
    while len(found) < num_problems:
        problem = draw_problem(rng)
        if problem.held_out == held_out:
            found.append((problem, problem.question(rng.choice(TEMPLATES))))
    return found


def answer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: list[str]) -> list[str]:
    """Return the greedy answers."""
    import torch

    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Print accuracies, as reasoning-gym's verifier sees them and with the tags forgiven."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="build/model")
    parser.add_argument("--adapter")
    parser.add_argument("--problems", type=int, default=1000)
    options = parser.parse_args()

    model, tokenizer = load(options.model, options.adapter)
    print("style    numbers   accuracy  (tags forgiven)")
    for held_out in (True, False):
        problems = draw(options.problems, held_out=held_out, seed=7)
        for style, opening in STYLES.items():
            texts = answer(model, tokenizer, [question + opening for _, question in problems])
            scores = [judge(opening + text, problem) for text, (problem, _) in zip(texts, problems, strict=True)]
            strict, forgiving = (sum(column) / len(scores) for column in zip(*scores, strict=True))
            print(f"{style:8} {'held out' if held_out else 'seen':8}  {strict:.3f}     ({forgiving:.3f})", flush=True)
    rng = Random(3)
    sums = [chain_sum(rng) for _ in range(options.problems)]
    texts = answer(model, tokenizer, [document.question for document in sums])
    right = [text == document.answer for text, document in zip(texts, sums, strict=True)]
    print(f"chain_sum          {sum(right) / len(right):.3f}")


def judge(text: str, problem: Problem) -> tuple[bool, bool]:
    """Return whether reasoning-gym accepts the tagged answer, and whether it accepts one given in words."""
    import reasoning_gym
    from reasoning_gym.utils import extract_answer

    score = reasoning_gym.create_dataset("countdown", size=1, seed=0).score_answer
    entry = {"metadata": {"numbers": list(problem.numbers), "target": problem.target}}
    tagged = extract_answer(text)
    worded = text.rpartition("The answer is ")[2].rstrip(".\n ") if "The answer is " in text else tagged
    return score(tagged, entry) == 1.0, score(worded, entry) == 1.0


if __name__ == "__main__":
    main()
