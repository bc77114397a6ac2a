"""The pool: completions are scored in processes beside generation, and nothing that fails is silently 0."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esalign.errors import RewardError
from esalign.rewards import RewardPool, load_reward
from esalign.types import Example


def function(name):
    return f"{Path(__file__).parent / 'reward_functions.py'}:{name}"


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
    "die": ("error", "the scoring process died on this completion, twice"),
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
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    try:
        with RewardPool([(function("misbehaving"), 1.0)], workers=0) as pool, pytest.raises(KeyboardInterrupt):
            pool.score(examples(1), ["Ctrl-C"])
    finally:
        signal.signal(signal.SIGINT, before)


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


@pytest.mark.slow
def test_many_failures_at_once_are_all_counted(pool):
    completions = ["die", "1", "hang", "2", "die", "raise", "3", "hang", "exit"]
    scores = pool.score(examples(9), completions)
    assert [scores.rewards[index] for index in (1, 3, 6)] == [1.0, 2.0, 3.0]
    assert scores.errors == {"misbehaving/error": 4, "misbehaving/timeout": 2}


def test_a_process_that_dies_by_no_fault_of_the_completion_costs_nothing(tmp_path):
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


def test_a_completion_on_which_all_abstain_has_no_reward(pool):
    assert pool.score(examples(2), ["abstain", "1"]).rewards == {0: None, 1: 1.0}


def test_equal_completions_of_a_problem_are_scored_once():
    (example,) = examples(1)
    with RewardPool([(function("misbehaving"), 1.0)], workers=2, timeout=0.5) as pool:
        pool.score([example], ["0"])
        begun = time.monotonic()
        scores = pool.score([example] * 50, ["sleep"] * 50)
        assert time.monotonic() - begun < 10
    assert scores.errors == {"misbehaving/timeout": 50}


def test_completions_are_scored_while_others_are_still_submitted(pool):
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


@pytest.mark.slow
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


@pytest.mark.slow
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
