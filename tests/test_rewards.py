"""Rewards: loading, the built-in ones, and the pool that scores beside generation."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esalign.data import load_examples
from esalign.errors import RewardError
from esalign.rewards import RewardPool, load_reward, preview
from esalign.rewards.maths import is_correct
from esalign.rewards.reasoning_gym import _score_countdown, score_entry
from esalign.types import Example

TESTS = Path(__file__).parent
FUNCTIONS = TESTS / "reward_functions.py"
COUNTDOWN = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 20, "min_target": 1, "max_target": 100}


def function(name):
    return f"{FUNCTIONS}:{name}"


# ---- loading


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


def test_unknown_options_are_refused_with_a_hint():
    with pytest.raises(RewardError, match="no option 'ignorecase', did you mean 'ignore_case'"):
        load_reward("exact-match", ignorecase=True)


BROKEN = {
    "too_many": "returned 2 values for 1 completions",
    "words": "returned 'good' in its list, expected numbers or None",
    "one_number": "returned 1.0, expected a list with a number or None per completion",
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


# ---- text


def test_regex_match_tells_forms_and_groups():
    form = load_reward("regex-match", pattern=r"<think>.*</think>\s*\S")
    assert form(prompts=["p"] * 2, completions=["<think>a\nb</think> c", "c"]) == [1.0, 0.0]
    last = load_reward("regex-match", pattern=r"= (\S+)", group=1, ignore_case=True)
    assert last(prompts=["p"] * 3, completions=["= 1, = B", "= b = 1", "b"], answer=["b", "b", "b"]) == [1.0, 0.0, 0.0]


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


# ---- maths

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


def gsm8k_answers():
    """Return the right answers of GSM8K's training problems: all where their file is given, else of a sample."""
    path = Path(os.environ.get("ESALIGN_GSM8K", TESTS / "data" / "gsm8k_sample.jsonl"))
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in lines]


def fill(form, number):
    return form.format(plain=number, comma=f"{number:,}")


@pytest.mark.parametrize("form", FORMATS)
def test_maths_accepts_right_answers_of_gsm8k_and_refuses_changed_ones(form):
    rng = random.Random(0)
    solutions = gsm8k_answers()
    numbers = [int(solution.rpartition("####")[2].replace(",", "")) for solution in solutions]
    right = [is_correct(fill(form, number), solution) for number, solution in zip(numbers, solutions, strict=True)]
    assert sum(right) >= 0.995 * len(right)
    changes = (lambda n: n + 1, lambda n: -n if n else 1, lambda n: 10 * n + 3, lambda n: n + rng.randint(2, 999))
    for number, solution in zip(numbers, solutions, strict=True):
        assert not is_correct(fill(form, rng.choice(changes)(number)), solution)


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{\frac{1}{2}}", r"\frac{2}{4}", True),
        (r"\boxed{x^2 + 2x + 1}", "$(x+1)^2$", True),
        (r"\boxed{x^2 + 2x}", "$(x+1)^2$", False),
        (r"first \boxed{3}, no: \boxed{4}", "4", True),
        (r"first \boxed{4}, no: \boxed{3}", "4", False),
        (r"\boxed{4} and \boxed{", "4", True),
        (r"$\boxed{\sqrt{2}}$", r"The root is \boxed{\sqrt{2}}", True),
        ("The answer is 42. I hope you like it.", "42", True),
        ("The final answer is 40 + 2 = 42.\nThe answer is 41.", "42", False),
        ("25%", "25", True),
        ("", "42", False),
        ("I do not know.", "42", False),
        ("0.333", "1/3", False),
        ("0.3333333", "1/3", True),
        ("42", "042", True),
        ("1,5", "15", False),
    ],
)
def test_maths_compares_values_of_final_answers(completion, answer, expected):
    assert is_correct(completion, answer) is expected


def test_maths_takes_numbers_abstains_without_an_answer_and_refuses_words():
    reward = load_reward("math")
    assert reward(prompts=["p"] * 3, completions=["42", "4.5", "1"], answer=[42, 4.5, None]) == [1.0, 1.0, None]
    with pytest.raises(ValueError, match="there is no mathematics in the right answer"):
        reward(prompts=["p"], completions=["1"], answer=[""])


# ---- reasoning-gym


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


# ---- the pool


@pytest.fixture(scope="module")
def pool():
    with RewardPool([(function("misbehaving"), 1.0)], workers=2, timeout=2.0) as made:
        yield made


def examples(count):
    return [Example(f"problem {index}") for index in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_scores_do_not_depend_on_the_number_of_workers(workers):
    completions = [str(index % 7) for index in range(300)]
    with RewardPool([(function("misbehaving"), 2.0), (function("length"), 0.5)], workers=workers) as pool:
        scores = pool.score(examples(300), completions)
    assert scores.rewards == {index: 2.0 * (index % 7) + 0.5 for index in range(300)}
    assert scores.components["length"] == dict.fromkeys(range(300), 1.0)
    assert scores.errors == {}


FAILURES = {
    "hang": ("timeout", "no reward within 2 s"),
    "hang in C": ("timeout", "no reward within 2 s"),
    "sleep": ("timeout", "no reward within 2 s"),
    "raise": ("error", "KeyError: 'no such thing'"),
    "exit": ("error", "SystemExit: 3"),
    "interrupt": ("error", "KeyboardInterrupt:"),
    "cancel": ("error", "CancelledError:"),
    "hang on": ("timeout", "no reward within 2 s"),
    "die": ("error", "the scoring process died on this answer, twice"),
    "nan": ("error", "the reward is nan, expected a finite number"),
    "infinity": ("error", "the reward is inf, expected a finite number"),
    "not a number": ("error", "ValueError: could not convert string to float: 'not a number'"),
}


@pytest.mark.parametrize("completion", FAILURES)
def test_a_failure_is_counted_and_shown_and_spares_its_neighbours(pool, completion):
    kind, message = FAILURES[completion]
    completions = [str(index) for index in range(40)]
    completions[17] = completion
    scores = pool.score(examples(40), completions)
    assert scores.rewards == {index: 0.0 if index == 17 else float(index) for index in range(40)}
    assert scores.errors == {f"misbehaving/{kind}": 1}
    assert scores.error_examples == {f"misbehaving/{kind}": message}
    assert scores.num_errors == 1


@pytest.mark.parametrize(
    "completion", sorted(FAILURES.keys() - {"die", "hang in C"})
)  # which end the process, or have it
def test_without_workers_a_failure_is_the_same(completion):
    kind, message = FAILURES[completion]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with RewardPool([(function("misbehaving"), 1.0)], workers=0, timeout=0.2) as pool:
        scores = pool.score(examples(3), ["1", completion, "2"])
    assert scores.rewards == {0: 1.0, 1: 0.0, 2: 2.0}
    assert scores.error_examples == {f"misbehaving/{kind}": message.replace("2 s", "0.2 s")}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)] == handlers


def test_without_workers_an_interrupt_from_outside_ends_the_scoring():
    with RewardPool([(function("misbehaving"), 1.0)], workers=0) as pool, pytest.raises(KeyboardInterrupt):
        pool.score(examples(1), ["Ctrl-C"])


def test_without_workers_an_alarm_that_was_set_before_still_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with RewardPool([(function("misbehaving"), 1.0)], workers=0, timeout=0.1) as pool:
            assert pool.score(examples(1), ["sleep"]).errors == {"misbehaving/timeout": 1}
        time.sleep(0.4)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rung == [1]


def test_many_failures_at_once_are_all_counted(pool):
    completions = ["die", "1", "hang", "2", "die", "raise", "3", "hang", "exit"]
    scores = pool.score(examples(9), completions)
    assert [scores.rewards[index] for index in (1, 3, 6)] == [1.0, 2.0, 3.0]
    assert scores.errors == {"misbehaving/error": 4, "misbehaving/timeout": 2}


def test_a_process_that_dies_by_no_fault_of_the_answer_costs_nothing(tmp_path):
    example = Example("p", {"marker": str(tmp_path / "died")})
    with RewardPool([(function("die_once"), 1.0)], workers=1) as pool:
        scores = pool.score([example], ["a"])
    assert scores.rewards == {0: 1.0}
    assert scores.errors == {}


def test_error_reward_takes_the_place_of_failures():
    with RewardPool([(function("misbehaving"), 1.0)], workers=0, error_reward=-1.0) as pool:
        assert pool.score(examples(2), ["raise", "1"]).rewards == {0: -1.0, 1: 1.0}


def test_abstentions_are_left_out_of_the_sum_and_counted():
    rewards = [(function("misbehaving"), 1.0), (function("length"), 10.0)]
    with RewardPool(rewards, workers=0) as pool:
        scores = pool.score(examples(2), ["abstain", "5"])
    assert scores.rewards == {0: 70.0, 1: 15.0}
    assert scores.components["misbehaving"] == {0: None, 1: 5.0}
    assert scores.abstentions == {"misbehaving": 1}


def test_an_answer_on_which_all_abstain_has_no_reward(pool):
    assert pool.score(examples(2), ["abstain", "1"]).rewards == {0: None, 1: 1.0}


def test_equal_answers_to_a_problem_are_scored_once():
    (example,) = examples(1)
    with RewardPool([(function("misbehaving"), 1.0)], workers=2, timeout=0.5) as pool:
        pool.score([example], ["0"])
        begun = time.monotonic()
        scores = pool.score([example] * 50, ["sleep"] * 50)
        assert time.monotonic() - begun < 10
    assert scores.errors == {"misbehaving/timeout": 50}


def test_answers_are_scored_while_others_are_still_submitted(pool):
    pool.submit("first", Example("p"), "process")
    time.sleep(0.5)
    pool.submit("second", Example("p"), "1")
    scores = pool.collect()
    assert scores.rewards["first"] != os.getpid()
    assert scores.rewards["second"] == 1.0
    assert pool.collect().rewards == {}


def test_a_key_cannot_be_used_twice(pool):
    pool.submit("key", Example("p"), "1")
    with pytest.raises(RewardError, match="'key' was submitted before"):
        pool.submit("key", Example("p"), "2")
    assert pool.collect().rewards == {"key": 1.0}


def test_two_rewards_of_one_name_stay_apart():
    rewards = [(load_reward(function("Judge"), scale=scale), 1.0) for scale in (1.0, 2.0)]
    with RewardPool(rewards, workers=0) as pool:
        scores = pool.score(examples(1), ["abc"])
    assert pool.names == ("Judge", "Judge-2")
    assert scores.components == {"Judge": {0: 3.0}, "Judge-2": {0: 6.0}}


def test_what_rewards_print_goes_nowhere(pool, capfd):
    assert pool.score(examples(1), ["print"]).rewards == {0: 1.0}
    assert capfd.readouterr().out == ""


def test_scoring_processes_do_not_import_torch(pool):
    assert pool.score(examples(1), ["torch"]).rewards == {0: 0.0}


def test_built_in_rewards_do_not_import_torch():
    code = (
        "import sys; from esalign.rewards import load_reward\n"
        "load_reward('math')(prompts=['p'], completions=['x'], answer=['y'])\n"
        "assert 'math_verify' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_functions_that_other_processes_cannot_find_are_refused():
    with pytest.raises(RewardError, match=r"cannot go to another process .* set workers to 0"):
        RewardPool([(lambda completions: [1.0 for _ in completions], 1.0)], workers=1)


def test_a_reward_that_cannot_be_loaded_by_the_workers_says_why(tmp_path):
    path = tmp_path / "only_here.py"
    path.write_text(f"import os\nassert os.getpid() == {os.getpid()}, 'elsewhere'\ndef f(completions): return [1.0]\n")
    with (
        RewardPool([(f"{path}:f", 1.0)], workers=1) as pool,
        pytest.raises(RewardError, match=r"only_here.py' fails: AssertionError: elsewhere"),
    ):
        pool.score(examples(1), ["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": []}, "no reward was given"),
        ({"rewards": [("exact-match", 1.0)], "workers": -1}, "workers is -1"),
        ({"rewards": [("exact-match", 1.0)], "timeout": 0.0}, "timeout 0.0"),
    ],
)
def test_pools_refuse_bad_settings(arguments, message):
    with pytest.raises(RewardError, match=message):
        RewardPool(**arguments)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid):
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_closing_ends_the_processes_hanging_ones_too():
    made = RewardPool([(function("misbehaving"), 1.0)], workers=1, timeout=60.0)
    pid = int(made.score(examples(1), ["process"]).rewards[0])
    made.submit(0, Example("p"), "hang in C")
    time.sleep(0.2)
    made.close()
    made.close()
    assert wait_until_gone(pid)


def test_a_killed_run_leaves_no_process_behind():
    code = (
        "import sys, time; from esalign.rewards import RewardPool; from esalign.types import Example\n"
        "pool = RewardPool([(sys.argv[1], 1.0)], workers=1, timeout=600.0)\n"
        "print(int(pool.score([Example('p')], ['process']).rewards[0]), flush=True)\n"
        "pool.submit(0, Example('p'), 'hang in C')\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, function("misbehaving")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        time.sleep(0.5)
        run.send_signal(signal.SIGKILL)
    assert wait_until_gone(pid)


# ---- preview


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
