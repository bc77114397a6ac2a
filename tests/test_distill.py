"""A distillation, from a configuration to the student: it learns, it resumes exactly, and says what is wrong."""

import json
from typing import Any

import pytest
import torch
import yaml
from distill_models import load, make_pair_folders
from models import make_model
from runs import REWARD, esalign, kill_at_random_moments, reproducible

from esalign.commands.distill import run_distill
from esalign.config.distill import DistillConfig
from esalign.config.reading import load_config
from esalign.errors import CheckpointError, DataError, DistillationError
from esalign.files import JsonLines
from esalign.run.checkpoint import Checkpoints
from esalign.space.adapter import read_adapter


class Silent:
    """A reporter that remembers warnings."""

    def __init__(self):
        self.warnings, self.rows = [], []

    def start(self, config, folder, done):
        self.done = done

    def stage(self, text, done=0, total=0):
        pass

    def generation(self, row):
        self.rows.append(row)

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_pair_folders(tmp_path_factory.mktemp("models"))


def write_config(folder, models, **changes: Any) -> DistillConfig:
    """Write data and reward, and return a configuration of a few seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "student": {"path": str(models[0]), "rank": 4, "dtype": "float32"},
        "teacher": {"path": str(models[1]), "dtype": "float32"},
        "behaviour": {"steps": 3, "budget": 0.05},
        "training": {"prompts": 4, "samples": 2, "learning_rate": 3e-3, "warmup_steps": 1, "device": "cpu"},
        "data": {"source": str(folder / "data.jsonl"), "validation_size": 6, "test_size": 8},
        "rewards": [{"name": f"{folder / 'reward.py'}:variety"}],
        "scoring": {"workers": 0},
        "sampling": {"max_tokens": 8, "temperature": 1.0},
        "run": {
            "name": "small",
            "dir": str(folder / "runs"),
            "generations": 4,
            "evaluate_every": 2,
            "reverse_kl_prompts": 4,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section] = {**content.get(section, {}), name: value} if name else value
    file = folder / "distill.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_config([file], schema=DistillConfig)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("finished")
    reporter = Silent()
    return run_distill(write_config(folder, models), reporter=reporter), reporter


def test_a_distillation_writes_the_files_of_a_run(finished):
    outcome, _ = finished
    names = {path.name for path in outcome.folder.iterdir()}
    assert names == {
        "adapter",
        "checkpoints",
        "completions.jsonl",
        "config.yaml",
        "data.json",
        "environment.json",
        "inputs.json",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "samples.jsonl",
    }
    assert read_adapter(outcome.folder / "adapter").config["r"] == 4
    assert "2605.31159" in (outcome.folder / "adapter" / "README.md").read_text()
    assert set(outcome.result.comparisons) == {"test/greedy", "test/sampled", "test/minus-reverse-kl"}


def test_the_metrics_tell_the_story(finished):
    outcome, reporter = finished
    rows = reproducible(outcome.folder)
    assert [row["generation"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["generation"] for row in rows if "validation" in row] == [0, 2, 4]
    assert [row["budget"] for row in rows[1:]] == pytest.approx([0.05, 0.05 * 2 / 3, 0.05 / 3, 0.0])
    for row in rows[1:]:
        assert 0 <= row["beta"] <= 1
        assert row["at_bound"] + row["at_teacher"] <= 1
        assert row["kl_student"] <= row["budget"] + 1e-6
        assert row["fitness"]["mean"] == -row["loss"]
        assert row["tokens"]["generated"] > 0
        assert row["tokens"]["scored"] == row["tokens"]["generated"] + row["tokens"]["prompt"]
        assert {"reverse_kl", "teacher_entropy", "grad_norm", "learning_rate", "mean_tokens", "truncated"} <= row.keys()
    assert rows[-1]["beta"] == 0.0
    assert [row["generation"] for row in reporter.rows] == [0, 1, 2, 3, 4]


def test_the_saved_adapter_is_the_student_that_was_judged(finished):
    outcome, reporter = finished
    assert outcome.verification.good
    assert outcome.verification.agreement == 1.0
    assert not reporter.warnings


def test_the_loss_at_the_first_update_is_the_reverse_kl_of_the_rollouts(finished):
    """The teacher remembered at the rollout and the student read again must give what the rollout saw."""
    outcome, _ = finished
    first = reproducible(outcome.folder)[1]
    assert first["loss"] == pytest.approx(first["reverse_kl"], abs=2e-4)


BEHAVIOURS = {
    "trust-region": {"name": "trust-region", "steps": 3},
    "plain": {"name": "student"},
    "speculative": {"name": "speculative", "steps": 3, "top": 5},
    "temperature": {"name": "temperature", "steps": 3, "temperature": 0.8},
    "sft": {"name": "sft", "steps": 3},
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS)
def test_every_behaviour_brings_the_student_closer_to_the_teacher(behaviour, models, tmp_path):
    config = write_config(
        tmp_path,
        models,
        behaviour=behaviour,
        training__prompts=8,
        training__learning_rate=1e-2,
        run__generations=16,
        run__evaluate_every=16,
        run__reverse_kl_prompts=16,
        data__test_size=16,
        data__validation_size=16,
        rewards=[{"name": f"{tmp_path / 'reward.py'}:variety"}],
    )
    run_distill(config, reporter=Silent())
    rows = reproducible(tmp_path / "runs" / "small")
    before, after = (-row["validation/minus-reverse-kl"]["mean"] for row in (rows[0], rows[-1]))
    assert after < 0.8 * before


def test_a_distillation_without_rewards_is_judged_by_the_reverse_kl_alone(models, tmp_path):
    outcome = run_distill(write_config(tmp_path, models, rewards=[], scoring__workers=1), reporter=Silent())
    assert set(outcome.result.comparisons) == {"test/minus-reverse-kl"}
    assert outcome.verification.good
    assert "reverse KL" in (outcome.folder / "report.html").read_text()


@pytest.mark.parametrize("loss", [{"support": None}, {"divergence": "forward_kl"}, {"divergence": "jensen_shannon"}])
def test_every_loss_falls(loss, models, tmp_path):
    config = write_config(tmp_path, models, loss=loss, training__learning_rate=1e-2, run__generations=8)
    run_distill(config, reporter=Silent())
    losses = [row["loss"] for row in reproducible(tmp_path / "runs" / "small")[1:]]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_all_weights_can_learn_and_are_saved_as_a_model(models, tmp_path):
    config = write_config(tmp_path, models, student__tuning="full", training__learning_rate=1e-3)
    outcome = run_distill(config, reporter=Silent())
    assert outcome.verification.agreement == 1.0
    learnt, _ = load(outcome.folder / "model")
    start, _ = load(models[0])
    changed = [not torch.equal(a, b) for a, b in zip(learnt.parameters(), start.parameters(), strict=True)]
    assert all(changed) or outcome.result.generation == 0
    assert (outcome.folder / "model" / "tokenizer.json").exists()
    assert outcome.saved == outcome.folder / "model"


def test_a_student_can_start_from_an_adapter(finished, models, tmp_path):
    start = finished[0].folder / "adapter"
    config = write_config(tmp_path, models, student__adapter=str(start), run__generations=3, behaviour__steps=2)
    outcome = run_distill(config, reporter=Silent())
    assert outcome.verification.agreement == 1.0
    assert read_adapter(outcome.folder / "adapter").config["r"] == 4


class Killed(Exception):  # noqa: N818  # it stands for a signal, not for a mistake
    pass


def kill_at(monkeypatch, owner, name, call):
    """Let a method fail for good at its call of a number, before it does anything."""
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) >= call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(JsonLines, "append", 5), (Checkpoints, "save", 1), (Checkpoints, "save", 5)],
    ids=["in an update", "at the start", "before the last checkpoint"],
)
def test_a_killed_and_resumed_distillation_equals_an_uninterrupted_one(
    owner, name, call, finished, models, tmp_path, monkeypatch
):
    config = write_config(tmp_path, models)
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call)
        with pytest.raises(Killed):
            run_distill(config, reporter=Silent())
    outcome = run_distill(config, reporter=Silent(), resume=True)
    assert_same(outcome.folder, finished[0].folder)


def assert_same(mine, theirs):
    assert reproducible(mine) == reproducible(theirs)
    assert (mine / "samples.jsonl").read_text() == (theirs / "samples.jsonl").read_text()
    weights = "adapter/adapter_model.safetensors"
    assert (mine / weights).read_bytes() == (theirs / weights).read_bytes()


def test_a_distillation_killed_at_random_moments_and_resumed_equals_an_uninterrupted_one(models, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        write_config(folder, models, run__generations=30)
    assert esalign("distill", whole / "distill.yaml").returncode == 0
    kill_at_random_moments("distill", killed / "distill.yaml", killed / "runs" / "small", kills=4)
    assert_same(killed / "runs" / "small", whole / "runs" / "small")


def test_a_distillation_resumes_from_sparse_checkpoints(finished, models, tmp_path, monkeypatch):
    config = write_config(tmp_path, models, run__checkpoint_every=2)
    with monkeypatch.context() as patch:
        kill_at(patch, Checkpoints, "save", 3)
        with pytest.raises(Killed):
            run_distill(config, reporter=Silent())
    reporter = Silent()
    outcome = run_distill(config, reporter=reporter, resume=True)
    assert reporter.done == 2
    assert_same(outcome.folder, finished[0].folder)


def test_an_interrupted_distillation_goes_on_where_it_stopped(finished, models, tmp_path):
    config = write_config(tmp_path, models)
    interrupts: list[int] = []

    class Interrupting(Silent):
        def generation(self, row):
            if row["generation"] == 2:
                interrupts.append(1)

    assert run_distill(config, reporter=Interrupting(), interrupts=interrupts).result is None
    outcome = run_distill(config, reporter=Silent(), resume=True)
    assert_same(outcome.folder, finished[0].folder)


def test_another_configuration_is_not_resumed(finished, models):
    folder = finished[0].folder.parents[1]
    config = write_config(folder, models, behaviour__budget=0.5)
    with pytest.raises(CheckpointError, match=r"behaviour\.budget was 0\.05 and is now 0\.5"):
        run_distill(config, reporter=Silent(), resume=True)


def test_a_too_long_prompt_is_refused(models, tmp_path):
    with pytest.raises(DataError, match=r"more than 3 tokens \(training.max_prompt_tokens\), such as .* row \d+"):
        run_distill(write_config(tmp_path, models, training__max_prompt_tokens=3), reporter=Silent())


def test_unknown_target_modules_are_refused(models, tmp_path):
    with pytest.raises(DistillationError, match="has no layers"):
        run_distill(write_config(tmp_path, models, student__target_modules=["nothing"]), reporter=Silent())


def test_different_chat_templates_are_warned_of(models, tmp_path):
    model, tokenizer = load(models[1])
    tokenizer.chat_template = "{{ messages }} other"
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    reporter = Silent()
    config = write_config(
        tmp_path, (models[0], tmp_path / "teacher"), data__system_prompt="Add.", run__generations=1, behaviour__steps=1
    )
    run_distill(config, reporter=reporter)
    assert any("different chat templates" in warning for warning in reporter.warnings)


def test_a_distillation_stops_when_its_rollout_tokens_are_used_up(models, tmp_path):
    config = write_config(tmp_path, models, run__max_generated_tokens=60, behaviour__steps=1)
    outcome = run_distill(config, reporter=Silent())
    rows = reproducible(outcome.folder)
    assert outcome.result.reason == "60 generated tokens are used up"
    assert rows[-2]["tokens"]["generated"] < 60 <= rows[-1]["tokens"]["generated"]


def test_the_command_line_distils_and_its_result_is_exported(models, tmp_path):
    write_config(tmp_path, models, run__generations=2, behaviour__steps=2)
    done = esalign("distill", tmp_path / "distill.yaml")
    assert done.returncode == 0, done.stderr
    assert "minus reverse KL" in done.stdout
    folder = tmp_path / "runs" / "small"
    assert (folder / "report.html").exists()
    exported = esalign("export", folder, "--merged", tmp_path / "merged", "--adapter", tmp_path / "adapter")
    assert exported.returncode == 0, exported.stderr
    assert float(exported.stdout.split("at most ")[1].split(")")[0]) < 1e-3
    assert read_adapter(tmp_path / "adapter").config["r"] == 4
    (folder / "model").mkdir()
    refused = esalign("export", folder, "--merged", tmp_path / "again")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "is the whole model already" in refused.stderr


def nan_teacher(models, folder):
    model, tokenizer = load(models[1])
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def other_tokenizer(models, folder):
    make_model(folder, tokenizer={"vocab_size": 290})


def small_vocabulary(models, folder):
    make_model(folder, vocab_size=200, tokenizer={"vocab_size": 320}, eos=(1,))


MISTAKES = {
    "different tokenizers": (other_tokenizer, "the tokenizers differ, first at"),
    "teacher with a smaller vocabulary": (small_vocabulary, "has 200 output rows for"),
    "NaN logits": (nan_teacher, "of the teacher's log-probabilities holds NaN"),
    "negative budget": ("behaviour.budget=-0.1", "'behaviour.budget' is -0.1"),
    "K longer than the run": ("behaviour.steps=9", "behaviour.steps is 9, but the run has only 4 updates"),
    "a key of no section": ("loss.top=4", "unknown key 'loss.top'"),
    "infinite budget": ("behaviour.budget=.inf", "'behaviour.budget' is inf"),
    "a teacher that is not there": ("teacher.path=/nowhere", "teacher '/nowhere' cannot be loaded"),
    "a behaviour of another name": ("behaviour.name=trust", "'behaviour.name' is 'trust'"),
    "a step too far": ("training.learning_rate=1e30", "the learning rate is too high"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_costs_one_line_on_the_command_line(mistake, message, models, tmp_path):
    write_config(tmp_path, models)
    if callable(mistake):
        mistake(models, tmp_path / "teacher")
        mistake = f"teacher.path={tmp_path / 'teacher'}"
    done = esalign("distill", tmp_path / "distill.yaml", mistake)
    assert message in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
