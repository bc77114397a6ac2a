"""The model that ships with esalign, and the texts it was made from."""

import json
import re
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "esalign" / "assets" / "embedded"
RULES = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}


@pytest.fixture(scope="module")
def make_data() -> Any:
    return load_example("make_data")


@pytest.fixture(scope="module")
def measure(make_data: ModuleType) -> Any:  # measure.py imports it
    return load_example("measure")


def load_example(name: str) -> ModuleType:
    import importlib

    sys.path.insert(0, str(ROOT / "examples" / "embedded_model"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_model_tokenizer_and_adapter_take_at_most_8_megabytes() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 8_000_000


def test_the_adapter_has_rank_8_on_the_attention_and_every_factor_is_of_full_rank() -> None:
    config = json.loads((ASSETS / "adapter" / "adapter_config.json").read_text())
    factors = load_file(ASSETS / "adapter" / "adapter_model.safetensors")
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert len(factors) == 4 * 4 * 2
    assert {np.linalg.matrix_rank(factor) for factor in factors.values()} == {config["r"]} == {8}


def test_no_path_of_the_machine_that_made_it_is_shipped() -> None:
    texts = [file.read_text() for file in ASSETS.rglob("*.json") if file.name != "tokenizer.json"]
    assert texts
    assert not [text for text in texts if ': "/' in text or "home" in text]


@pytest.mark.parametrize("text", ["12 + 7", "naïve 東京 🙂", " two  spaces\n\n", "1234567", "<answer>3</answer>"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_questions_are_word_for_word_those_of_reasoning_gym_and_short_in_tokens(make_data: Any) -> None:
    import reasoning_gym
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    for entry in reasoning_gym.create_dataset("countdown", seed=0, size=30, **RULES):
        numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
        problem = make_data.Problem(tuple(numbers), target)
        assert entry["question"] in [problem.question(template) for template in make_data.TEMPLATES]
        assert len(tokenizer(entry["question"])["input_ids"]) <= 12


def test_every_demonstration_without_a_slip_satisfies_the_verifier(make_data: Any, measure: Any) -> None:
    rng = Random(0)
    for _ in range(200):
        problem = make_data.draw_problem(rng)
        plan = next(plan for plan in make_data.plans(problem.numbers) if plan.value == problem.target)
        assert measure.judge(make_data.answer_direct(plan), problem) == (True, True)
        assert measure.judge(make_data.answer_plain(plan), problem) == (False, True)


def test_held_out_numbers_are_in_no_countdown_text(make_data: Any) -> None:
    rng = Random(1)
    share = np.mean([make_data.draw_problem(rng).held_out for _ in range(500)])
    assert 0.1 < share < 0.3
    for _ in range(500):
        question = make_data.countdown(rng, make_data.PRETRAINING).question
        values = [int(word) for word in re.findall(r"\d+", question.partition("Final")[0])]
        target = 0 if question.startswith(("Find", "Calculate")) else 3
        numbers = tuple(values[:target] + values[target + 1 :])
        assert not make_data.Problem(numbers, values[target]).held_out


def test_searching_is_far_more_reliable_than_answering_at_once(measure: Any) -> None:
    """There is something to elicit: the styles differ on problems whose numbers were never seen."""
    model, tokenizer = measure.load(ASSETS / "model", None)
    problems = measure.draw(150, held_out=True, seed=3)
    accuracy = {}
    for style in ("direct", "search"):
        opening = measure.STYLES[style]
        texts = measure.answer(model, tokenizer, [question + opening for _, question in problems])
        graded = zip(texts, problems, strict=True)
        accuracy[style] = np.mean([measure.judge(opening + text, problem)[0] for text, (problem, _) in graded])
    assert 0.35 < accuracy["direct"] < 0.7
    assert accuracy["search"] > accuracy["direct"] + 0.15
