"""The reward of reasoning-gym's own verifiers, and the fast way through Countdown's."""

import random

import pytest

from esalign.data import load_examples
from esalign.rewards import load_reward
from esalign.rewards.reasoning_gym import _score_countdown, score_entry

COUNTDOWN = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 20, "min_target": 1, "max_target": 100}


@pytest.fixture(scope="module")
def countdown():
    return load_examples("reasoning-gym:countdown", size=40, seed=1, options=COUNTDOWN)


def test_gym_reward_gives_the_verifier_s_own_score(countdown):
    columns = {name: [example.columns[name] for example in countdown] for name in ("metadata", "question", "answer")}
    reward = load_reward("reasoning-gym")
    prompts = [example.prompt for example in countdown]
    tagged = [f"hm <answer>1</answer> <answer> {right} </answer>" for right in columns["answer"]]
    assert reward(prompts=prompts, completions=tagged, **columns) == [1.0] * 40
    assert reward(prompts=prompts, completions=columns["answer"], **columns) == [1.0] * 40
    assert reward(prompts=prompts, completions=["1 + 1"] * 40, **columns) == [0.05] * 40
    assert reward(prompts=prompts, completions=["no idea"] * 40, **columns) == [0.01] * 40
    strict = load_reward("reasoning-gym", full_marks_only=True)
    assert strict(prompts=prompts, completions=["1 + 1"] * 39 + tagged[-1:], **columns) == [0.0] * 39 + [1.0]


def test_gym_reward_scores_other_tasks_with_their_entries():
    examples = load_examples("reasoning-gym:gsm_symbolic", size=3, seed=1)
    for example in examples:
        assert score_entry(str(example.columns["answer"]), example.columns) == 1.0
        assert score_entry("-1", example.columns) < 1.0


@pytest.mark.slow
def test_fast_countdown_scores_equal_reasoning_gym_s():
    import reasoning_gym

    verifier = reasoning_gym.get_score_answer_fn("countdown")
    rng = random.Random(0)
    fast = 0
    for _ in range(1500):
        numbers = [rng.randint(0, 12) for _ in range(3)]
        operators = [rng.choice("+-*/") for _ in range(2)]
        valid = f"({numbers[0]} {operators[0]} {numbers[1]}){operators[1]}{numbers[2]}"
        noise = "".join(
            rng.choice(["1", "2", "0", "12", "=", "+", "-", "*", "/", "(", ")", " "]) for _ in range(6)
        ).strip()
        prose = " ".join(rng.choice(["so", "x", "and", "if", "2", "+", "(3)", "else", "it!", "= 4"]) for _ in range(4))
        answer = rng.choice([valid, valid, noise, prose])
        metadata = {"numbers": rng.sample(numbers, 3), "target": rng.randint(1, 30)}
        if answer is valid and rng.random() < 0.5 and not ("/" in operators and 0 in numbers):
            metadata["target"] = max(1, round(eval(valid)))
        score = _score_countdown(answer, metadata)
        if score is None or "**" in answer:
            continue
        fast += 1
        assert score == verifier(answer, {"metadata": metadata}), (answer, metadata)
    assert fast > 1000


def test_powers_do_not_hang_countdown():
    metadata = {"numbers": [9, 9, 9], "target": 729}
    assert _score_countdown("9**9**9", metadata) == 0.05
    assert _score_countdown("9**9/9", metadata) == 0.05
    assert _score_countdown("9**2*9", {"numbers": [9, 2, 9], "target": 729}) == 1.0
