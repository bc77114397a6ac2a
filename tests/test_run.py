"""A run, from the command line to the adapter: what it writes, that it resumes, and what it says."""

import json
import signal
import time

import numpy as np
import pytest
import yaml
from esalign_torch import TorchBackend
from models import make_model
from runs import esalign, kill_at_random_moments, reproducible, start_esalign, write_run
from transformers import AutoModelForCausalLM

from esalign.run.checkpoint import Checkpoints
from esalign.run.folder import alone_in
from esalign.run.verify import verify_adapter
from esalign.space import SvdLora
from esalign.space.adapter import read_adapter
from esalign.types import Sampling


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = esalign("run", write_run(folder))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "small", done


def final_vectors(folder):
    state = Checkpoints(folder / "checkpoints").load_last()
    return state["learner"]["optimizer"], state["progress"]["best"]["vector"]


def assert_same_state(mine, theirs):
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            if not str(key).endswith("_seconds"):
                assert_same_state(mine[key], theirs[key])
    elif isinstance(mine, np.ndarray):
        assert np.array_equal(mine, theirs, equal_nan=True)
    elif isinstance(mine, list):
        assert len(mine) == len(theirs)
        for left, right in zip(mine, theirs, strict=True):
            assert_same_state(left, right)
    else:
        assert mine == theirs


def assert_same_run(mine, theirs):
    assert reproducible(mine) == reproducible(theirs)
    assert (mine / "samples.jsonl").read_text() == (theirs / "samples.jsonl").read_text()
    for left, right in zip(final_vectors(mine), final_vectors(theirs), strict=True):
        assert_same_state(left, right)
    weights = "adapter/adapter_model.safetensors"
    assert (mine / weights).read_bytes() == (theirs / weights).read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (mine, theirs)]
    for result in results:
        del result["totals"]["machine"]
    assert results[0] == results[1]


def test_a_run_writes_its_files_and_says_where(finished):
    folder, done = finished
    names = {path.name for path in folder.iterdir()}
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
    assert str(folder / "report.html") in done.stdout.replace("\n", "")
    assert [row["generation"] for row in reproducible(folder)] == list(range(7))
    assert [row["generation"] for row in reproducible(folder) if "validation" in row] == [0, 2, 4, 6]
    assert not list(folder.rglob("*.tmp"))


def test_the_adapter_is_plain_peft_with_a_model_card_and_was_compared(finished):
    folder, _ = finished
    assert read_adapter(folder / "adapter").config["r"] == 2
    card = (folder / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "test/greedy" in card
    verification = json.loads((folder / "result.json").read_text())["verification"]
    assert verification["good"]
    assert verification["agreement"] == 1.0


def test_another_adapter_than_the_one_that_answered_is_not_called_good(finished, monkeypatch):
    folder, home = finished[0], finished[0].parent.parent
    backend = TorchBackend(home / "model", SvdLora.from_pretrained(folder / "adapter"), device="cpu")
    prompts = [backend.encode(f"{a} + 3 =") for a in range(20)]
    sampling = Sampling(max_tokens=8)
    [answers] = backend.generate(np.zeros((1, backend.space.dim)), prompts, sampling)
    # As an engine may change transformers in its own process; the check has one of its own.
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    other = home / "adapter"
    found = verify_adapter(str(home / "model"), other, prompts, answers, max_tokens=8, dtype="float32", exact=True)
    assert (found.good, found.count) == (False, 20)


def test_the_result_is_judged_against_the_start_on_the_same_problems(finished):
    folder, _ = finished
    comparisons = json.loads((folder / "result.json").read_text())["comparisons"]
    assert set(comparisons) == {"test/greedy", "test/sampled"}
    for comparison in comparisons.values():
        assert comparison["start"]["count"] == comparison["result"]["count"] == 16
        gain = comparison["result"]["mean"] - comparison["start"]["mean"]
        assert comparison["gain"]["mean"] == pytest.approx(gain, abs=1e-12)


def test_equal_seeds_give_equal_runs(finished, tmp_path):
    done = esalign("run", write_run(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "runs" / "small", finished[0])


def test_a_search_from_the_model_alone_that_is_killed_equals_one_that_is_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        file = write_run(folder, space={"name": "base-svd", "rank": 2, "tie": 8}, run__generations=30)
        config = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**config, "model": {"path": config["model"]["path"]}}))
    assert esalign("run", whole / "run.yaml").returncode == 0
    kill_at_random_moments("run", killed / "run.yaml", killed / "runs" / "small", kills=2)
    assert_same_run(killed / "runs" / "small", whole / "runs" / "small")
    assert json.loads((whole / "runs" / "small" / "result.json").read_text())["verification"]["agreement"] == 1.0


@pytest.mark.parametrize(("fitness", "kills"), [("reward", 10), ("surrogate", 4), ("distillation", 4)])
def test_a_run_killed_at_random_moments_and_resumed_equals_an_uninterrupted_one(fitness, kills, tmp_path):
    options = {"name": fitness, "prompts": 6, "samples": 4 if fitness == "surrogate" else 1}
    if fitness == "distillation":
        teacher = make_model(tmp_path / "teacher", seed=2, initializer_range=0.1)
        options["options"] = {"teacher": str(teacher), "steps": 4, "refresh": 2, "dtype": "float32", "device": "cpu"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        optimizer = {"name": "openai-es", "population": 6, "sigma": 0.5}
        write_run(folder, fitness=options, optimizer=optimizer, run__generations=6 * kills, run__evaluate_every=20)
    assert esalign("run", whole / "run.yaml").returncode == 0
    kill_at_random_moments("run", killed / "run.yaml", killed / "runs" / "small", kills=kills)
    assert_same_run(killed / "runs" / "small", whole / "runs" / "small")


def test_first_interrupt_finishes_the_generation_and_saves(tmp_path):
    file = write_run(tmp_path, run__generations=10_000)
    command = start_esalign("run", file)
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    command.send(signal.SIGINT)
    assert command.wait().returncode == 130
    assert "--resume" in command.stdout
    assert "Traceback" not in command.stderr
    state = Checkpoints(tmp_path / "runs" / "small" / "checkpoints").load_last()
    assert state["progress"]["done"] == reproducible(metrics.parent)[-1]["generation"]


def test_second_interrupt_stops_at_once_and_loses_no_finished_generation(tmp_path):
    slow = tmp_path / "slow"
    (tmp_path / "waits.py").write_text(
        "import pathlib, time\n\n"
        "def waits(prompts, completions, **columns):\n"
        f"    time.sleep(60 if pathlib.Path({str(slow)!r}).exists() else 0)\n"
        "    return [len(set(text)) / 40 for text in completions]\n"
    )
    file = write_run(tmp_path, rewards=[{"name": f"{tmp_path / 'waits.py'}:waits"}], run__generations=10_000)
    command = start_esalign("run", file)
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    slow.touch()
    time.sleep(2.0)  # until it hangs
    command.send(signal.SIGINT)
    while "finishing what is under way" not in command.stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    command.send(signal.SIGINT)
    assert command.wait().returncode == 130
    assert time.monotonic() - began < 30
    assert "stopped" in command.stderr
    assert "Traceback" not in command.stderr
    slow.unlink()
    done = reproducible(metrics.parent)[-1]["generation"]
    resumed = esalign("run", file, "--resume", f"run.generations={done + 1}")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["generation"] for row in reproducible(metrics.parent)] == list(range(done + 2))


def test_resuming_with_another_configuration_is_refused_by_key(finished, tmp_path):
    folder = finished[0].parent.parent
    done = esalign("run", folder / "run.yaml", "--resume", "optimizer.sigma=0.7")
    assert done.returncode == 2
    assert "optimizer.sigma was 0.5 and is now 0.7" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_finished_run_goes_on_when_given_more_generations(tmp_path):
    file = write_run(tmp_path, run__generations=2)
    assert esalign("run", file).returncode == 0
    done = esalign("run", file, "--resume", "run.generations=6")
    assert done.returncode == 0, done.stderr
    assert [row["generation"] for row in reproducible(tmp_path / "runs" / "small")] == list(range(7))


def test_two_runs_never_share_a_folder(finished):
    folder = finished[0].parent.parent
    with alone_in(finished[0]):
        done = esalign("run", folder / "run.yaml", "--resume", "run.generations=7")
    assert done.returncode == 2
    assert "another process is running in" in done.stderr
    assert [row["generation"] for row in reproducible(finished[0])] == list(range(7))


def test_equal_fitness_is_warned_of_and_stops_the_run(tmp_path):
    (tmp_path / "flat.py").write_text("def flat(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    rewards = [{"name": f"{tmp_path / 'flat.py'}:flat"}]
    done = esalign("run", write_run(tmp_path, rewards=rewards, run__flat_limit=2, run__generations=50))
    assert done.returncode == 0, done.stderr
    assert "same fitness" in done.stdout
    assert len(reproducible(tmp_path / "runs" / "small")) == 3


def test_dry_run_shows_the_plan_the_columns_and_what_is_odd_about_the_reward_and_writes_nothing(tmp_path):
    rows = [json.dumps({"question": f"{n} + 1 =", "solution": str(n + 1)}) for n in range(60)]
    (tmp_path / "other.jsonl").write_text("\n".join(rows))
    (tmp_path / "never.py").write_text("def never(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n")
    rewards = [{"name": f"{tmp_path / 'never.py'}:never"}]
    done = esalign("run", write_run(tmp_path, rewards=rewards, data__source=str(tmp_path / "other.jsonl")), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "generated tokens in all generations" in done.stdout
    assert not (tmp_path / "runs").exists()
    assert "'question' is taken for the prompt, 'solution' is taken for the answer" in done.stdout
    assert "reward never gives none of 8 right answers" in done.stdout
    assert "all candidates have the same fitness" in done.stdout


def test_eval_agrees_with_the_run_on_the_same_problems(finished):
    folder = finished[0].parent.parent
    done = esalign("eval", folder / "run.yaml", "--adapter", finished[0] / "adapter")
    result = json.loads((finished[0] / "result.json").read_text())["comparisons"]["test/greedy"]["result"]
    assert f"{result['mean']:.3f}" in done.stdout
    assert esalign("eval", folder / "run.yaml", "--no-adapter").returncode == 0


def test_merged_export_gives_the_logits_of_base_and_adapter(finished, tmp_path):
    done = esalign("export", finished[0], "--merged", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    difference = float(done.stdout.split("at most ")[1].split(")")[0])
    assert difference < 1e-3
