"""Judging models: pass@k, majority vote, one model against another, tables by column, and the file of completions."""

import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from quick_runs import PROBLEMS, write_quick_run
from rich.console import Console
from runs import esalign, write_run

from esalign.assets import asset
from esalign.commands.evaluate import judge
from esalign.errors import ConfigError
from esalign.fitness.completions import Completed
from esalign.report.terminal import show_judged
from esalign.run.judged import Judged, group_by, majority, voted_answer
from esalign.run.statistics import best_of, estimate
from esalign.space.adapter import read_adapter, write_adapter
from esalign.types import Completion, Example

NAN = float("nan")


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_best_of_k_equals_the_mean_over_all_choices_of_k_samples(samples):
    rewards = np.random.default_rng(samples).normal(size=(4, samples)).round(1)
    for k in range(1, samples + 1):
        enumerated = [np.mean([max(chosen) for chosen in itertools.combinations(row, k)]) for row in rewards]
        np.testing.assert_allclose(best_of(rewards, k), enumerated, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 6, 10])
def test_pass_at_k_is_the_estimator_of_chen_et_al(samples):
    """As they compute it: ``1 - prod(1 - k / i for i in n - c + 1 ... n)``, and by enumeration."""
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        row = np.array([1.0] * right + [0.0] * (samples - right))
        tail = np.arange(samples - right + 1, samples + 1)
        published = 1.0 if samples - right < k else 1.0 - np.prod(1.0 - k / tail)
        enumerated = np.mean([any(chosen) for chosen in itertools.combinations(row, k)])
        assert best_of(row[None], k)[0] == pytest.approx(published, abs=1e-12)
        assert best_of(row[None], k)[0] == pytest.approx(enumerated, abs=1e-12)


def test_pass_at_k_has_no_bias_where_the_plain_estimate_has():
    rng, k, p = np.random.default_rng(0), 4, 0.2
    draws = (rng.random((20_000, 8)) < p).astype(float)
    truth = 1 - (1 - p) ** k
    assert best_of(draws, k).mean() == pytest.approx(truth, abs=0.005)
    assert abs((1 - (1 - draws.mean(axis=1)) ** k).mean() - truth) > 0.03


def test_samples_that_abstain_do_not_count_towards_k():
    rewards = np.array([[1.0, NAN, 0.0], [NAN, NAN, NAN]])
    np.testing.assert_equal(best_of(rewards, 2), [1.0, NAN])
    assert np.isnan(best_of(rewards, 3)).all()


def test_the_vote_goes_to_the_most_frequent_answer_and_ties_are_shared():
    rewards = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, NAN]])
    answers = [["4", "5", "5"], ["4", "5", "6"], ["x", "y", "x"]]
    np.testing.assert_allclose(majority(rewards, answers), [0.0, 1 / 3, 0.5])


@pytest.mark.parametrize(
    ("maths", "one", "same", "other"),
    [
        (True, r"It is \boxed{1,000}.", "So the answer is 1000.0", r"\boxed{100}"),
        (True, r"\boxed{\frac{1}{2}}", "#### 1/2", r"\boxed{2}"),
        (True, r"\boxed{(1, 2)}", r"so \boxed{(1,2)}", r"\boxed{(2, 1)}"),
        (False, "<answer>4 + 5</answer>", "First 9.\n<answer>4 + 5 </answer>", "<answer>5 + 4</answer>"),
        (False, " yes\n", "yes", "no"),
    ],
)
def test_answers_are_equal_however_they_are_written(maths, one, same, other):
    assert voted_answer(one, maths=maths) == voted_answer(same, maths=maths) != voted_answer(other, maths=maths)


def test_a_list_counts_by_its_elements_and_numbers_stand_in_their_order():
    examples = [Example("p", {"kinds": kinds, "level": level}) for kinds, level in ([["b", "a", "b"], 10], [["a"], 9])]
    assert group_by(examples, "kinds") == {"a": [0, 1], "b": [0]}
    assert list(group_by(examples, "level")) == [9, 10]
    assert group_by([Example("p", {"kinds": []})], "kinds") == {}


def make_judged(rewards, lengths=None, *, name="start", cut=0, examples=None):
    """A model with rewards (problems, samples) and the lengths of its completions."""
    rewards = np.array(rewards, dtype=float)
    lengths = np.full(rewards.shape, 3) if lengths is None else np.array(lengths)
    reasons = ["length"] * cut + ["stop"] * (lengths.size - cut)
    row = [
        Completion(f"text {n}", (7,) * int(length), reason)
        for n, (length, reason) in enumerate(zip(lengths.ravel(), reasons, strict=True))
    ]
    examples = examples or [Example(f"problem {n}", {"answer": n}) for n in range(len(rewards))]
    return Judged(name, examples, Completed([row], rewards.reshape(1, -1), {}, {}), seconds=2.0)


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval_as_more_problems_would():
    few = make_judged([[1.0], [0.0], [1.0], [0.25]])
    many = make_judged(few.rewards.repeat(16, axis=1))
    assert (estimate(many.scores), many.best_of(16), many.majority()) == (estimate(few.scores),) * 3
    assert many.best_of(16).count == 4


def test_a_model_is_compared_with_the_start_problem_by_problem():
    start = make_judged([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [NAN, NAN]], [[2, 2]] * 4)
    other = make_judged([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]], [[6, 2]] * 4)
    found = other.against(start)
    assert (found.gained, found.lost, found.gain.count) == (2, 1, 3)
    assert found.gain.mean == pytest.approx((0.5 + 0.5 - 0.5) / 3)
    assert found.longer.mean == 2.0


def shown(judged, *, width=100, by=()):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    show_judged(console, judged, by=by, max_tokens=8)
    return console.export_text()


def test_tables_fit_a_narrow_terminal_and_a_wide_one():
    start = make_judged([[1.0, 0.0], [0.0, 0.0]] * 20, [[4, 5]] * 40)
    other = make_judged([[1.0, 1.0], [0.0, 1.0]] * 20, [[9, 11]] * 40, name="runs/one/adapter", cut=20)
    for width in (80, 160):
        text = shown([start, other], width=width)
        assert max(map(len, text.splitlines())) <= width
        for word in ("runs/one/adapter", "+0.500", "40 / 0", "pass@1", "pass@2", "majority of 2", "25.0%"):
            assert word in text
    assert "0.250 [" in text
    assert "warning" in text
    assert "2.2 times as long as the start's, 10 tokens instead of 4" in " ".join(text.split())


def test_a_reward_that_is_graded_has_a_best_of_k_and_no_pass_at_k():
    text = shown([make_judged([[0.5, 0.25]])])
    assert "best of 2" in text
    assert "pass@" not in text


def test_a_column_has_a_table_of_its_own():
    examples = [Example("p", {"kinds": ["[a]", "b"]}), Example("q", {"kinds": ["b"]})]
    text = shown([make_judged([[1.0], [0.0]], examples=examples)], by=["kinds"])
    rows = [line.split()[:3] for line in text.splitlines()]
    assert ["[a]", "1", "1.000"] in rows
    assert ["b", "2", "0.500"] in rows


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    told = {row["prompt"]: f"It is \\boxed{{{row['answer']}}}" for row in PROBLEMS}
    return write_quick_run(
        folder,
        rewards=["math"],
        sampling={"max_tokens": 24, "temperature": 1.0},
        backend={"name": "fake", "self_test": 0, "options": {"completions": told, "confidence": 6.0}},
    )


def test_every_completion_is_in_the_file_with_lm_evals_names(quick, tmp_path):
    file = tmp_path / "samples.jsonl"
    [start] = judge(quick, start=None, samples=3, output=file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["doc_id"], row["sample"]) for row in rows] == [(n, s) for n in range(16) for s in range(3)]
    np.testing.assert_array_equal(np.reshape([row["reward"] for row in rows], (16, 3)), start.rewards)
    assert 0.0 < start.rewards.mean() < 1.0
    for row in rows:
        a, b = row["prompt"].removesuffix(" =").split(" + ")
        assert row["target"] == row["doc"]["answer"] == str(int(a) + int(b))
        assert row["resps"] == [[row["completion"]]]
        assert (row["filtered_resps"] == [row["target"]]) == (row["reward"] == 1.0)
        assert row["arguments"][0][1].items() >= {"temperature": 1.0, "top_p": 1.0}.items()
        assert not {"seed", "offset", "greedy"} & row["arguments"][0][1].keys()
        assert (row["model"], row["metrics"], row["finish_reason"] in ("stop", "length")) == ("start", ["reward"], True)


def test_an_adapter_stands_below_the_start_on_the_same_problems(quick):
    start, other = judge(quick, start=None, adapters=[quick.model.adapter], samples=2)
    assert (start.name, other.name) == ("start", quick.model.adapter)
    assert start.examples == other.examples
    assert start.note == other.note == ""


def test_an_adapter_of_zeros_is_judged_as_the_base_model_and_said_to_be_one(quick, tmp_path):
    found = read_adapter(quick.model.adapter)
    zero = replace(found, modules=tuple(replace(one, B=one.B * 0) for one in found.modules))
    start, other = judge(quick, start=None, adapters=[str(write_adapter(zero, tmp_path / "zero"))])
    np.testing.assert_array_equal(start.rewards, other.rewards)
    assert "changes nothing" in other.note


def test_bad_input_is_refused_before_a_token_is_generated(quick, tmp_path):
    greedy = quick.model_copy(update={"sampling": quick.sampling.model_copy(update={"temperature": 0.0})})
    (tmp_path / "there.jsonl").touch()
    for config, options, message in (
        (greedy, {"samples": 2}, "all samples are equal"),
        (quick, {"split": "tests"}, "no split 'tests'"),
        (quick, {"by": ["anwser"]}, "did you mean 'answer'"),
        (quick, {"output": tmp_path / "there.jsonl"}, "exists"),
        (quick, {"output": tmp_path / "nowhere" / "new.jsonl"}, "no folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            judge(config, start=None, progress=lambda text, *_: pytest.fail(text), **options)


@pytest.mark.slow
def test_the_torch_engine_samples_each_problem_and_judges_several_adapters(tmp_path):
    found = read_adapter(asset("embedded/adapter"))
    zero = replace(found, modules=tuple(replace(one, B=one.B * 0) for one in found.modules))
    few = ["data.test_size=16", "data.validation_size=8", "data.train_size=8", "backend.self_test=0"]
    options = ["--no-adapter", "--samples", "4", "--output", tmp_path / "all.jsonl", "--by", "target"]
    adapters = ["--adapter", write_adapter(zero, tmp_path / "zero"), "--adapter", "embedded"]
    done = esalign("eval", *few, "sampling.temperature=1", "data.columns.target=metadata.target", *options, *adapters)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("pass@4", "majority of 4", "/ lost", "changes nothing", "cost"):
        assert word in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    texts, rewards = {}, {}
    for row in rows:
        name = row["model"].rpartition("/")[2]
        texts.setdefault((name, row["doc_id"]), []).append(row["completion"])
        rewards.setdefault(name, []).append(row["reward"])
    assert len(texts) == 3 * 16
    assert all(texts["start", n] == texts["zero", n] for n in range(16))
    assert max(len(set(given)) for given in texts.values()) == 4
    assert np.mean(rewards["embedded"]) > np.mean(rewards["start"])
    for name in ("start", "embedded"):
        assert next(line for line in done.stdout.splitlines() if line.startswith(f"{name} ")).split()[1] == (
            f"{np.mean(rewards[name]):.3f}"
        )


@pytest.mark.slow
def test_samples_need_a_temperature_on_the_command_line_too(tmp_path):
    done = esalign("eval", write_run(tmp_path), "--samples", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --samples is 2 with greedy decoding")
