"""Rewards: how they are loaded, how they are called, and those that compare text."""

import pickle
from pathlib import Path

import pytest

from esalign.errors import RewardError
from esalign.rewards import RewardPool, TrainerState, load_reward
from esalign.rewards.judge import Item, judge
from esalign.types import Example

TESTS = Path(__file__).parent


def function(name):
    return f"{TESTS / 'reward_functions.py'}:{name}"


# ---- loading


def test_built_in_rewards_read_completions_that_are_messages_as_trl_gives_them():
    reward = load_reward("math")
    messages = [{"role": "assistant", "content": "It is 4."}]
    assert reward(prompts=[[{"role": "user", "content": "2 + 2?"}]], completions=[messages], answer=["4"]) == [1.0]
    with pytest.raises(RewardError, match=r"^reward 'math' got the completion 4, expected text or messages$"):
        reward(prompts=["2 + 2?"], completions=[4], answer=["4"])


@pytest.mark.parametrize("completion", [4, [], [{"role": "assistant"}], [[{"role": "assistant", "content": "4"}]]])
def test_completions_that_are_neither_text_nor_messages_are_refused(completion):
    chat = [{"role": "user", "content": "2 + 2?"}]
    with pytest.raises(RewardError, match=r"got the completion .*, expected text or messages"):
        load_reward(function("length"))(prompts=[chat], completions=[completion])


def test_rewards_are_loaded_by_name_module_file_and_as_they_are(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    import reward_functions

    for spec in (function("length"), "reward_functions:length", reward_functions.length):
        assert load_reward(spec)(prompts=["p", "p"], completions=["ab", "abc"]) == [2.0, 3.0]
    assert load_reward("exact-match")(prompts=["p"], completions=["a"], answer=["a"]) == [1.0]


def test_the_example_reward_loads_and_scores():
    reward = load_reward(f"{TESTS.parent / 'examples' / 'custom_reward.py'}:short_and_right", budget=10)
    long = "so " * 30 + "42"
    values = reward(
        prompts=["p"] * 4, completions=["It is 42.", "It is 41.", "x", long], answer=["42", "42", None, "42"]
    )
    assert values == [1.0, 0.0, None, 10 / 92]


def test_options_are_bound_and_win_over_columns_of_the_same_name():
    reward = load_reward("exact-match", ignore_case=True)
    assert reward(prompts=["p"], completions=[" YES "], answer=["yes"], ignore_case=[False]) == [1.0]
    assert load_reward(reward, strip=False)(prompts=["p"], completions=[" YES "], answer=["yes"]) == [0.0]


def test_a_class_is_made_with_the_options():
    assert load_reward(function("Judge"), scale=2.0)(prompts=["p"], completions=["abc"]) == [6.0]


def test_verl_functions_are_recognised_by_their_signature():
    reward = load_reward(function("compute_score"))
    columns = {"answer": ["2", "2"], "data_source": ["a", "a"], "extra_info": [{"bonus": 0.5}, None]}
    assert reward(prompts=["p", "p"], completions=["2", "3"], **columns) == [1.5, 0.0]
    assert reward(prompts=["p"], completions=["3"], answer=["2"], ground_truth=["3"]) == [1.0]


def test_a_loaded_reward_survives_pickling():
    reward = load_reward(function("Judge"), scale=2.0)
    assert pickle.loads(pickle.dumps(reward))(prompts=["p"], completions=["abc"]) == [6.0]


BAD_SPECS = {
    "unknown": ("maths", "unknown reward 'maths', did you mean 'math'"),
    "no file": ("nowhere.py:reward", "there is no reward file"),
    "no module": ("no_such_module:reward", "there is no module 'no_such_module'"),
    "no function": (function("lenght"), "has no function 'lenght', did you mean 'length'"),
    "no callable": (function("NUMBER"), "is int, expected a function"),
    "async": (function("asynchronous"), "is async, expected a plain function"),
    "number": (3, "a reward is int, expected a name"),
    "no completions": (lambda answer: [1.0 for _ in answer], "takes no 'completions': write def"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_rewards_that_cannot_be_loaded_say_why(case):
    spec, message = BAD_SPECS[case]
    with pytest.raises(RewardError, match=message) as caught:
        load_reward(spec)
    assert "\n" not in str(caught.value)


def test_files_that_fail_name_the_line_or_the_error(tmp_path):
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "error.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(RewardError, match=r"syntax.py:2: invalid syntax"):
        load_reward(f"{tmp_path}/syntax.py:f")
    with pytest.raises(RewardError, match=r"error.py' fails: ModuleNotFoundError: No module named 'no_such_package_at"):
        load_reward(f"{tmp_path}/error.py:f")


BAD_OPTIONS = {
    "misspelt": ("exact-match", {"ignorecase": True}, "no option 'ignorecase', did you mean 'ignore_case'"),
    "misspelt beside columns": (function("with_columns"), {"budgets": 1}, "no option 'budgets', did you mean 'budget'"),
    "unknown beside columns": (function("with_columns"), {"colour": 1}, "no option 'colour'; options: budget"),
    "wrong type beside columns": (function("with_columns"), {"budget": "x"}, "option 'budget' is 'x', input should be"),
    "misspelt, of a class": (function("Judge"), {"scales": 2.0}, "no option 'scales', did you mean 'scale'"),
    "a column": (function("with_answer"), {"answer": "4"}, "no option 'answer': it has no default, so it is a column"),
    "a built-in's column": ("math", {"answer": "4"}, "no option 'answer': it has no default, so it is a column"),
    "completions": (function("with_columns"), {"completions": ["4"]}, "no option 'completions'"),
    "of the run": (function("by_tokens"), {"trainer_state": None}, "no option 'trainer_state'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_would_be_lost_are_refused(case):
    spec, options, message = BAD_OPTIONS[case]
    with pytest.raises(RewardError, match=message):
        load_reward(spec, **options)


def test_arguments_with_a_default_and_those_behind_a_star_are_options():
    assert load_reward(function("with_columns"), budget=7)(prompts=["p"], completions=["c"], other=["x"]) == [7.0]
    assert load_reward(function("with_answer"), budget=7)(prompts=["p"], completions=["c"], answer=["c"]) == [1.0]
    assert load_reward("regex-match", pattern="c")(prompts=["p"], completions=["c"]) == [1.0]


BROKEN = {
    "too_many": "returned 2 values for 1 completions",
    "words": "returned 'good' in its list, expected numbers or None",
    "one_number": "returned 1.0, expected a list with a number or None per completion",
    "a_mapping": "returned {'c': 1.0}, expected a list with a number or None per completion",
    "a_set": "returned {1.0}, expected a list with a number or None per completion",
    "some_bytes": "returned b'1', expected a list with a number or None per completion",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_contract_is_an_error_that_names_the_reward(name, workers):
    with pytest.raises(RewardError, match=f"reward '{name}' {BROKEN[name]}"):
        load_reward(function(name))(prompts=["p"], completions=["c"])
    with (
        RewardPool([(function(name), 1.0)], workers=workers) as pool,
        pytest.raises(RewardError, match=f"reward '{name}' {BROKEN[name]}"),
    ):
        pool.score([Example("p")], ["c"])


def test_a_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(RewardError, match=r"needs 'answer', which is neither an option nor a column.*columns: answers"):
        load_reward("math")(prompts=["p"], completions=["1"], answers=["1"])
    with pytest.raises(RewardError, match="needs 'pattern', which is neither an option nor a column"):
        load_reward("regex-match")(prompts=["p"], completions=["1"])


def test_a_column_of_another_length_is_refused():
    with pytest.raises(RewardError, match="given 2 completions, but 1 of 'answer'"):
        load_reward("math")(prompts=["p", "p"], completions=["1", "2"], answer=["1"])


def test_a_direct_call_refuses_what_is_not_finite():
    with pytest.raises(RewardError, match="gave nan for completion 1, expected a finite number"):
        load_reward(function("misbehaving"))(prompts=["p", "p"], completions=["1", "nan"])


# ---- what a reward is given

CHAT = [{"role": "user", "content": "2 + 2 = ?"}]


def test_completions_of_chats_are_messages_and_those_of_texts_are_text_as_trl_has_them():
    of_chats, of_texts = load_reward(function("of_chats")), load_reward(function("of_texts"))
    assert of_chats(prompts=[CHAT, CHAT], completions=["4", "5"]) == [1.0, 0.0]
    assert of_texts(prompts=["p"], completions=["4"]) == [1.0]
    with pytest.raises(TypeError, match="string indices"):
        of_chats(prompts=["p"], completions=["4"])


@pytest.mark.parametrize("spec", [function("of_texts"), "exact-match", "math", function("compute_score")])
def test_rewards_that_are_annotated_for_texts_get_texts_of_chats_too(spec):
    reward = load_reward(spec)
    columns = {} if "of_texts" in spec else {"answer": ["4"], "data_source": ["a"]}
    assert reward(prompts=[CHAT], completions=["4"], **columns) == [1.0]


def test_tokens_and_the_state_of_the_run_are_given_to_those_who_name_them():
    with RewardPool([(function("by_tokens"), 1.0)], workers=1) as pool:
        pool.state = TrainerState(global_step=3, max_steps=50)
        pool.submit("one", Example("p"), "same", (7, 8))
        pool.submit("two", Example("p"), "same", (9,))
        assert pool.collect().rewards == pytest.approx({"one": 302.05, "two": 301.05})
    direct = load_reward(function("by_tokens"))
    assert direct(prompts=["p"], completions=["c"], completion_ids=[[1, 2]]) == [2.0]
    with pytest.raises(RewardError, match="needs 'completion_ids'"):
        direct(prompts=["p"], completions=["c"])


def test_a_verl_function_that_gives_a_mapping_without_score_is_refused():
    with pytest.raises(
        RewardError, match=r"'compute_nothing' returned {'reward': 1.0}, expected a number or a mapping"
    ):
        load_reward(function("compute_nothing"))(prompts=["p"], completions=["c"], answer=["c"])


# ---- text


def test_regex_match_tells_forms_and_groups():
    form = load_reward("regex-match", pattern=r"<think>.*</think>\s*\S")
    assert form(prompts=["p"] * 2, completions=["<think>a\nb</think> c", "c"]) == [1.0, 0.0]
    last = load_reward("regex-match", pattern=r"= (\S+)", group=1, ignore_case=True)
    assert last(prompts=["p"] * 3, completions=["= 1, = B", "= b = 1", "b"], answer=["b", "b", "b"]) == [1.0, 0.0, 0.0]


def test_a_pattern_that_ignores_case_by_itself_leaves_the_case_of_answers():
    letter = load_reward("regex-match", pattern=r"(?i)answer: (\w)", group=1)
    completions = ["ANSWER: B", "answer: b", "Answer: C"]
    assert letter(prompts=["p"] * 3, completions=completions, answer=["B"] * 3) == [1.0, 0.0, 0.0]


def test_an_answer_that_no_text_can_be_is_refused_also_where_nothing_is_found():
    letter = load_reward("regex-match", pattern="(B)", group=1)
    with pytest.raises(RewardError, match="needs one text or number as 'answer'"):
        letter(prompts=["p"], completions=["?"], answer=[["B"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "("}, "cannot read its pattern"),
        ({"pattern": "a", "group": 1}, "has no group 1"),
        ({"pattern": "(a)", "group": "x"}, "has no group 'x'"),
    ],
)
def test_regex_match_refuses_bad_patterns(options, message):
    with pytest.raises(RewardError, match=message):
        load_reward("regex-match", **options)(prompts=["p"], completions=["a"], answer=["a"])


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (1e-05, ["0.00001", "1e-05"], ["1", "0.0001"]),
        (1e16, ["10000000000000000", "1e+16"], ["1e15"]),
        (7.0, ["7", "7.0", " 7 "], ["70"]),
        (7, ["7"], ["7.0", "007"]),
        ("007", ["007"], ["7"]),
        (True, ["True"], ["1", "1.0"]),
    ],
)
def test_exact_match_knows_numbers_by_their_digits(answer, right, wrong):
    last = load_reward("regex-match", pattern=r"(\S+)\s*$", group=1)
    for reward in (load_reward("exact-match"), last):
        completions = right + wrong
        values = reward(prompts=["p"] * len(completions), completions=completions, answer=[answer] * len(completions))
        assert values == [1.0] * len(right) + [0.0] * len(wrong)


@pytest.mark.parametrize(("prompt", "told"), [(CHAT, True), ("2 + 2", False)])
def test_a_reward_that_takes_messages_for_text_is_told_how_to_get_text(prompt, told):
    def distinct(completions, **columns):
        return [len({*text, {}}) for text in completions]  # fails on text, too

    outcome = judge(load_reward(distinct), Item(prompt, {}, "4"))
    assert outcome.failure == "error"
    assert outcome.message.startswith("TypeError: unhashable type: 'dict'")
    assert ("with completions: Sequence[str], a reward gets their text" in outcome.message) == told
