"""What is said of a reward before a run: what it gives for right answers, and for texts that must earn nothing."""

from pathlib import Path

from esalign.rewards import load_reward, preview
from esalign.types import Example


def function(name):
    return f"{Path(__file__).parent / 'reward_functions.py'}:{name}"


def test_preview_shows_a_reward_that_never_likes_the_right_answer():
    data = [Example("p", {"answer": "42"})] * 3
    reward = load_reward("regex-match", pattern="<think>")
    seen = preview(reward, data, ["<think>", "raise"])
    assert [outcome.value for outcome in seen.right] == [0.0, 0.0, 0.0]
    assert [outcome.value for outcome in seen.completions] == [1.0, 0.0]
    assert seen.concerns == ("the reward gave none of the 3 right answers more than 0",)


def test_preview_shows_failures_and_abstentions():
    data = [Example("p", {"answer": "raise"}), Example("p", {"answer": "1"})]
    seen = preview(load_reward(function("misbehaving")), data, ["abstain", "abstain"])
    assert seen.concerns == (
        "the reward failed on 1 of 2 right answers: KeyError: 'no such thing'",
        "the reward abstained on all 2 completions",
    )
    assert preview(load_reward("math"), data[1:], ["1"]).concerns == ()
