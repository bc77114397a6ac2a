"""The maths reward: what is the final answer, and is it the right one."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from maths_pairs import PAIRS, all_pairs

from esalign.errors import RewardError
from esalign.rewards import load_reward
from esalign.rewards.maths import is_correct, math_reward

TESTS = Path(__file__).parent

FORMATS = (
    "{plain}",
    "{comma}",
    "${comma}",
    "{comma} dollars",
    "{plain}.00",
    r"\boxed{{{plain}}}",
    r"So we get $\boxed{{{comma}}}$.",
    r"\boxed{{\${comma}}}",
    r"\boxed{{{plain}\text{{ dollars}}}}",
    r"\boxed{{{plain} apples}}",
    "She has 12 + 5 = 17 of them. The answer needs more.\n#### {comma}",
    "12 * 3 = 36. The answer is {plain}.",
    "The answer is ${comma}.",
    "The final answer is **{plain}**.",
    "Answer: {plain}",
    "Therefore she has {comma} clips in total.",
    "<think>The answer is 3?</think>\n<answer>{plain}</answer>",
)


@pytest.mark.parametrize("form", PAIRS)
def test_completions_of_every_form_get_what_they_are_worth(form):
    given = {(answer, completion): is_right for name, answer, completion, is_right in all_pairs() if name == form}
    answers, completions = zip(*given, strict=True)
    values = math_reward(completions, answers)
    assert dict(zip(given, values, strict=True)) == {pair: float(is_right) for pair, is_right in given.items()}


def test_there_are_pairs_enough_to_speak_of_agreement():
    assert len(PAIRS) >= 30
    assert len(all_pairs()) >= 300


def gsm8k_answers():
    """Return the right answers of GSM8K's training problems: all where their file is given, else of a sample."""
    path = Path(os.environ.get("ESALIGN_GSM8K", TESTS / "data" / "gsm8k_sample.jsonl"))
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in lines]


def fill(form, number):
    return form.format(plain=number, comma=f"{number:,}")


@pytest.mark.parametrize("form", FORMATS)
def test_right_answers_of_gsm8k_are_accepted_and_changed_ones_refused(form):
    rng = random.Random(0)
    solutions = gsm8k_answers()
    numbers = [int(solution.rpartition("####")[2].replace(",", "")) for solution in solutions]
    assert all(is_correct(fill(form, number), solution) for number, solution in zip(numbers, solutions, strict=True))
    changes = (lambda n: n + 1, lambda n: -n if n else 1, lambda n: 10 * n + 3, lambda n: n + rng.randint(2, 999))
    for number, solution in zip(numbers, solutions, strict=True):
        assert not is_correct(fill(form, rng.choice(changes)(number)), solution)


def test_expressions_count_for_those_who_ask_for_it():
    completions, answers = ["The answer is 80 + 75", r"\boxed{3\cdot 4}", "155", "80 + 76"], ["155", "12", "155", "155"]
    assert load_reward("math")(prompts=["p"] * 4, completions=completions, answer=answers) == [0.0, 0.0, 1.0, 0.0]
    evaluated = load_reward("math", evaluate=True)
    assert evaluated(prompts=["p"] * 4, completions=completions, answer=answers) == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["math", "exact-match"])
def test_no_answer_is_an_abstention(name):
    assert load_reward(name)(prompts=["p"] * 2, completions=["None", "1"], answer=[None, 1]) == [None, 1.0]


@pytest.mark.parametrize("answer", ["", " ", float("nan"), float("inf")])
def test_an_answer_without_mathematics_is_an_error(answer):
    with pytest.raises(ValueError, match="there is no mathematics in the right answer"):
        load_reward("math")(prompts=["p"], completions=["1"], answer=[answer])


@pytest.mark.parametrize(
    ("answer", "kind"), [(["7"], "a list"), ([], "a list"), (("7", "8"), "a list"), ({"value": "7"}, "a mapping")]
)
@pytest.mark.parametrize(
    ("name", "options"), [("math", {}), ("exact-match", {}), ("regex-match", {"pattern": "(.)", "group": 1})]
)
def test_answers_that_no_text_can_equal_are_refused(name, options, answer, kind):
    with pytest.raises(RewardError, match=f"reward '{name}' needs one text or number as 'answer'.* answer is {kind}"):
        load_reward(name, **options)(prompts=["p"], completions=["7"], answer=[answer])


def test_long_nonsense_is_read_in_time():
    for piece in ("1 ", "1,", "1 + ", "**", "`", "\\boxed{", "\\frac{1}", "answer is ", "1 (a) ", "1 or ", "#### 1\n"):
        began = time.process_time()  # who else uses the machine does not count
        assert not is_correct("The answer is " + piece * (12000 // len(piece)), "7")
        assert time.process_time() - began < 5, piece


@pytest.mark.parametrize("piece", ["x²", "x^2", "½", "\\sqrt{x}", "√", "± ", "pi ", "∛(x"])
def test_a_repetition_in_a_box_is_read_in_time(piece):
    began = time.process_time()
    assert not is_correct("\\boxed{" + piece * (3000 // len(piece)) + "}", "\\sqrt{3}")
    assert not is_correct("\\boxed{" + piece * (290 // len(piece)) + "}", "\\sqrt{3}")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("form", ["${}$", "$x$ is ${}$.", "\\[{}\\]"])
@pytest.mark.parametrize("piece", ["x²", "x^2", "½", "(", "{"])
def test_a_repetition_in_a_formula_is_read_in_time(piece, form):
    began = time.process_time()
    assert not is_correct(form.format(piece * (6000 // len(piece))), "\\sqrt{3}")
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("B", ["I choose B.", "I'd choose B", "So I would choose (B).", "My choice is B.", "Option B it is."], []),
        (
            "B",
            [],
            ["I choose C over B.", "I choose A and B.", "Option B it is not.", "I would not choose B.", "I choose"],
        ),
        (
            "5",
            [f"There were more.\n{bullet} 5" for bullet in ("*", "-", "1)", "(2)", "•")],
            ["They lose:\n-5", "3 * 5"],
        ),
        ("5", ["**Answer:**\n* 5 apples", "The answer is:\n- 5"], ["10\n- 5", "3\n* 5", "x =\n- 5", "So:\n* 3\n* 5"]),
        ("-5", ["- 5", "The answer is - 5", "They lose:\n-5", "x =\n- 5", "So:\n* -5"], ["It is this:\n* 5"]),
        ("-5x + 3", ["Answer:\n- 5x + 3"], []),
        (
            "3",
            ["3 hours", "3 hours and 0 minutes", "3 hours (180 minutes)"],
            ["3 hrs 20 min", "It takes 3 h and 20 min."],
        ),
        ("20", ["20 min", "After 3 hours, 20 were left."], ["It takes 3 hours and 20 minutes.", "20 feet 3 inches"]),
        ("3 hrs 20 min", ["3 hrs 20 min", "The answer is 3 hrs 20 min."], ["3 hrs", "20 min"]),
    ],
)
def test_choices_bullets_and_two_units_are_told_from_the_answer(answer, right, wrong):
    assert [text for text in right if not is_correct(text, answer)] == []
    assert [text for text in wrong if is_correct(text, answer)] == []
