"""Whole runs on the fake engine: what they write, that they resume, and what report and terminal show of them."""

import io
import json
import os
from functools import partial

import pytest
from quick_runs import PROBLEMS, Recorder, run_quickly, write_quick_run
from rich.console import Console
from runs import reproducible

from esalign.commands.align import plan
from esalign.config.reading import parse_override
from esalign.errors import CheckpointError
from esalign.report.terminal import LiveDashboard, PlainReporter, show_result
from esalign.run.apart import call_apart
from esalign.run.folder import alone_in
from esalign.testing import FakeBackend


def test_a_run_writes_every_generation_and_its_result(tmp_path, monkeypatch):
    outcome = run_quickly(write_quick_run(tmp_path), monkeypatch)
    assert [row["generation"] for row in reproducible(outcome.folder)] == list(range(7))
    assert [row["generation"] for row in reproducible(outcome.folder) if "validation" in row] == [0, 2, 4, 6]
    assert set(json.loads((outcome.folder / "result.json").read_text())["comparisons"]) == {
        "test/greedy",
        "test/sampled",
    }
    assert (outcome.folder / "adapter" / "adapter_model.safetensors").exists()


def test_a_run_says_how_far_the_judgements_of_start_and_result_are(tmp_path, monkeypatch):
    reporter = Recorder()
    run_quickly(write_quick_run(tmp_path), monkeypatch, reporter=reporter)
    assert {text: share for text, share in reporter.stages.items() if text.startswith("judging")} == {
        "judging the start (validation)": (8, 8),
        "judging the start (test, greedy)": (16, 16),
        "judging the start (test, sampled)": (16, 16),
        "judging the result (0% of the way, validation, sampled)": (16, 16),
        "judging the result (100% of the way, validation, sampled)": (16, 16),
        "judging the result (50% of the way, validation, sampled)": (16, 16),
        **{f"judging the result ({share}% of the way, probabilities)": (0, 0) for share in (0, 50, 100)},
        "judging the result (test, greedy)": (16, 16),
        "judging the result (test, sampled)": (16, 16),
    }


def test_the_search_raises_the_reward(tmp_path, monkeypatch):
    config = write_quick_run(tmp_path, run__generations=25, fitness__prompts=32, optimizer__population=24)
    outcome = run_quickly(config, monkeypatch)
    assert outcome.result.comparisons["test/greedy"].gain.low > 0


@pytest.mark.parametrize(
    ("optimizer", "stopped_after"), [("cma-es", 1), ("cma-es", 4), ("openai-es", 4), ("random-search", 1)]
)
def test_a_run_that_dies_and_is_resumed_equals_an_uninterrupted_one(tmp_path, monkeypatch, optimizer, stopped_after):
    changes = {"optimizer__name": optimizer, "sampling__temperature": 0.7}
    whole = run_quickly(write_quick_run(tmp_path / "whole", **changes), monkeypatch)
    config = write_quick_run(tmp_path / "cut", **changes)
    with pytest.raises(KeyboardInterrupt):
        run_quickly(config, monkeypatch, reporter=Recorder(fail_after=stopped_after))
    resumed = run_quickly(config, monkeypatch, resume=True)
    assert reproducible(resumed.folder) == reproducible(whole.folder)
    assert (resumed.folder / "samples.jsonl").read_text() == (whole.folder / "samples.jsonl").read_text()
    weights = "adapter/adapter_model.safetensors"
    assert (resumed.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()


def test_other_seeds_give_other_runs(tmp_path, monkeypatch):
    one = run_quickly(write_quick_run(tmp_path / "one"), monkeypatch)
    two = run_quickly(write_quick_run(tmp_path / "two", run__seed=1), monkeypatch)
    assert reproducible(one.folder) != reproducible(two.folder)


def test_completions_that_the_configuration_tells_are_rewarded(tmp_path, monkeypatch):
    told = {row["prompt"]: row["answer"] for row in PROBLEMS}
    config = write_quick_run(
        tmp_path, backend__options={"completions": told}, rewards=[{"name": "exact-match"}], run__generations=1
    )
    reporter = Recorder()
    outcome = run_quickly(config, monkeypatch, reporter=reporter)
    assert outcome.result.comparisons["test/greedy"].result.mean == 1.0
    assert reporter.rows[0]["validation"]["mean"] == 1.0


def test_equal_fitness_stops_a_run_and_is_warned_of(tmp_path, monkeypatch):
    told = {row["prompt"]: row["answer"] for row in PROBLEMS}
    config = write_quick_run(
        tmp_path,
        backend__options={"completions": told},
        rewards=[{"name": "exact-match"}],
        fitness={"options": {"sampled": 0}},
        run__flat_limit=2,
        run__generations=50,
    )
    reporter = Recorder()
    run_quickly(config, monkeypatch, reporter=reporter)
    assert len(reporter.rows) == 3
    assert any("same fitness" in warning for warning in reporter.warnings)


def test_a_dry_run_estimates_what_a_run_takes_and_writes_nothing(tmp_path):
    estimated = plan(write_quick_run(tmp_path))
    assert (estimated.dim, estimated.problems) == (4, (40, 8, 16))
    assert estimated.tokens > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["live", "plain"])
def test_the_terminal_shows_a_run_from_its_start_to_its_result(tmp_path, monkeypatch, kind):
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=kind == "live", color_system=None)
    made = (LiveDashboard if kind == "live" else PlainReporter)(console)
    outcome = run_quickly(write_quick_run(tmp_path), monkeypatch, reporter=made)
    if kind == "live":
        console.print(made)
    show_result(console, outcome.result, outcome.verification, outcome.folder)
    shown = console.file.getvalue()
    assert "6 of 6" in shown or "6/6" in shown
    assert outcome.result.reason in " ".join(shown.split())


def die() -> None:
    raise RuntimeError("transformers has other names\nnow")


@pytest.mark.parametrize("end", [die, partial(call_apart, os.abort), partial(call_apart, parse_override, text="none")])
def test_a_check_that_dies_costs_neither_result_nor_report(tmp_path, monkeypatch, end):
    seen = []

    def check(*_, **__):
        folder = tmp_path / "runs" / "quick"
        seen.append(json.loads((folder / "result.json").read_text()))
        with pytest.raises(CheckpointError, match="another process"), alone_in(folder):
            pytest.fail("the folder is not locked")
        assert "no improvement" in (folder / "report.html").read_text()
        assert "Check: not done." in (folder / "adapter" / "README.md").read_text()
        end()

    config, reporter = write_quick_run(tmp_path, run__generations=1), Recorder()
    outcome = run_quickly(config, monkeypatch, reporter=reporter, with_report=True, check=check)
    result = json.loads((outcome.folder / "result.json").read_text())
    assert seen == [{**result, "verification": None}]
    assert result["verification"]["note"].startswith("not compared, as the check failed: ")
    assert "\n" not in result["verification"]["note"]
    assert reporter.warnings[-1] == outcome.verification.note
    assert "not compared, as the check failed" in (outcome.folder / "report.html").read_text()


def test_a_write_that_would_block_is_not_taken_for_another_process(tmp_path):
    with pytest.raises(BlockingIOError), alone_in(tmp_path):
        raise BlockingIOError("the terminal is full")


def test_an_engine_that_dies_before_the_check_costs_no_result(tmp_path, monkeypatch):
    config = write_quick_run(tmp_path, run__generations=1)
    encode = FakeBackend.encode

    def encode_until_the_result(*arguments):
        if (tmp_path / "runs" / "quick" / "result.json").exists():
            raise MemoryError("no room")
        return encode(*arguments)

    monkeypatch.setattr(FakeBackend, "encode", encode_until_the_result)
    outcome = run_quickly(config, monkeypatch)
    assert outcome.verification.note == "not compared, as the check failed: MemoryError: no room"
    assert set(json.loads((outcome.folder / "result.json").read_text())["comparisons"]) == {
        "test/greedy",
        "test/sampled",
    }


@pytest.mark.parametrize("error", [OSError(28, "No space left"), MemoryError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(("fail_after", "resumable"), [(None, False), (2, True)])
def test_only_a_run_with_a_checkpoint_is_said_to_go_on(tmp_path, monkeypatch, error, fail_after, resumable):
    config, reporter = write_quick_run(tmp_path, run__generations=2), Recorder(fail_after=fail_after, error=error)
    if fail_after is None:
        monkeypatch.setattr(FakeBackend, "generate", reporter.fail)
    with pytest.raises(type(error)) as caught:
        run_quickly(config, monkeypatch, reporter=reporter)
    said = ["what was written before is whole, so the run goes on with --resume"] if resumable else []
    assert list(getattr(caught.value, "__notes__", ())) == said


def test_a_run_ends_with_a_report_of_its_rows_and_samples(tmp_path, monkeypatch):
    outcome = run_quickly(write_quick_run(tmp_path, run__generations=1), monkeypatch, with_report=True)
    page = (outcome.folder / "report.html").read_text()
    assert outcome.result.reason in page
