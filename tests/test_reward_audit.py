"""What is said of a reward before a run: what it gives for right answers, and for texts that must earn nothing."""

from pathlib import Path

import pytest
from quick_runs import Recorder, run_quickly, write_quick_run

from esalign.commands.align import plan
from esalign.errors import RewardError
from esalign.rewards import RewardPool, audit, load_reward
from esalign.types import Example


def function(name):
    return f"{Path(__file__).parent / 'reward_functions.py'}:{name}"


# ---- texts that must earn nothing

SUMS = [Example(f"{a} + {a + 3}", {"answer": str(2 * a + 3)}) for a in range(11, 31)]
CAPITALS = [
    Example(f"What is the capital of {land}?", {"answer": capital})
    for land, capital in {"France": "Paris", "Peru": "Lima", "Chad": "N'Djamena", "Cuba": "Havana"}.items()
]
CHOICES = [Example(f"Question {i}: A, B, C or D?", {"answer": "ABCD"[i % 4]}) for i in range(16)]
HONEST = {
    "math on sums": ("math", {}, SUMS),
    "math on words": ("math", {}, CAPITALS),
    "math on choices": ("math", {}, CHOICES),
    "exact-match": ("exact-match", {}, CAPITALS),
    "a form": ("regex-match", {"pattern": r"<answer>(.*?)</answer>", "group": 1}, SUMS),
}
CHEATED = {
    "evaluation": ("math", {"evaluate": True}, SUMS, ["the repeated prompt"], "'11 + 14' earns 1, the right answer 1"),
    "length": (
        function("length"),
        {},
        SUMS,
        ["one word a thousand times", "the right answer among others"],
        "'so so so",
    ),
    "mention": (function("mentions_the_answer"), {}, SUMS, ["the right answer among others"], "25 or 27 or"),
    "form alone": (
        function("says_any_number"),
        {},
        SUMS,
        ["the repeated prompt", "another problem's answer", "the right answer among others"],
        "earns 1, the right answer 1",
    ),
    "brevity": (function("short"), {}, SUMS, ["the empty text"], "'' earns 0, the right answer -2"),
}


def audit_of(spec, options, examples):
    with RewardPool([(load_reward(spec, **options), 1.0)], workers=0) as pool:
        return audit(pool, examples)


@pytest.mark.parametrize("case", HONEST)
def test_honest_rewards_pass_the_audit(case):
    assert audit_of(*HONEST[case]) == []


@pytest.mark.parametrize("case", CHEATED)
def test_rewards_that_can_be_cheated_are_found_with_the_text(case):
    spec, options, examples, kinds, text = CHEATED[case]
    found = audit_of(spec, options, examples)
    assert all(
        any(f"can be cheated: {kind} earns as much as a right answer on" in line for line in found) for kind in kinds
    )
    assert any(text in line for line in found), found
    assert all("\n" not in line for line in found)


def test_what_is_solved_by_chance_on_one_problem_is_no_trick():
    lucky = [Example("0 + 5", {"answer": "5"}), *SUMS]
    columns = [
        Example(f"Say {example.columns['answer']}" if i == 3 else "?", example.columns)
        for i, example in enumerate(lucky)
    ]
    assert audit_of("math", {}, columns) == []


def test_a_reward_that_fails_on_an_empty_completion_is_told_of():
    found = audit_of(function("first_word"), {}, SUMS)[0]
    assert (
        found == "reward first_word/error on texts that a model may write, such as none at all: "
        "IndexError: list index out of range"
    )


def test_a_reward_that_likes_no_form_of_the_right_answer_is_told_of():
    (found,) = audit_of("regex-match", {"pattern": "<think>"}, SUMS)
    assert found.startswith("reward regex-match gives none of 8 right answers, in 5 forms, more than 0")


def test_a_reward_that_fails_or_abstains_on_right_answers_is_told_of():
    data = [Example("p", {"answer": "raise"}), Example("p", {"answer": "1"})]
    assert audit_of(function("misbehaving"), {}, data)[0] == (
        "reward misbehaving/error on right answers: KeyError: 'no such thing'"
    )

    def silent(completions):
        return [None for _ in completions]

    assert audit_of(silent, {}, data) == [
        "reward silent abstains on the right answers of all 2 problems that were tried"
    ]


def test_a_dry_run_refuses_answers_that_no_text_can_equal(tmp_path):
    config = write_quick_run(tmp_path, rewards=[{"name": "exact-match"}])
    rows = "".join(f'{{"prompt": "{a} + 1", "answer": ["{a + 1}"]}}\n' for a in range(40))
    (tmp_path / "data.jsonl").write_text(rows)
    with pytest.raises(RewardError, match="a problem's answer is a list"):
        plan(config)


def test_a_dry_run_and_the_start_of_a_run_warn_of_tricks(tmp_path, monkeypatch):
    config = write_quick_run(tmp_path, run__generations=1)
    dry = [text for text in plan(config).concerns if "can be cheated" in text]
    reporter = Recorder()
    run_quickly(config, monkeypatch, reporter=reporter)
    assert dry
    assert [text for text in reporter.warnings if "can be cheated" in text] == dry
