"""Scorings that fail during a run: counted, shown with what they said, and the end of the run when all fail."""

import io
import json

import pytest
from quick_runs import Recorder, run_quickly, write_quick_run
from rich.console import Console

from esalign.commands.align import plan
from esalign.errors import RewardError
from esalign.fitness.completions import prefilled
from esalign.report.page.render import all_concerns
from esalign.report.page.source import read_run
from esalign.report.terminal import LiveDashboard, PlainReporter
from esalign.testing.fake import FakeBackend

SHAKY = """
def shaky(completions, **columns):
    if hash_of(completions[0]) % 2:
        raise KeyError("no such thing")
    return [len(set(completions[0])) / 12]


def hash_of(text):
    return sum(text.encode())


def chat_style(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def thinks(completions, **columns):
    return [float(completion.startswith("<think>")) + len(set(completion)) / 100 for completion in completions]
"""
MESSAGE = "shaky/error): KeyError: 'no such thing'"


def write_shaky_run(tmp_path, name, **changes):
    (tmp_path / "rewards.py").write_text(SHAKY)
    return write_quick_run(tmp_path, rewards=[{"name": f"{tmp_path / 'rewards.py'}:{name}"}], **changes)


@pytest.mark.parametrize("kind", ["live", "plain"])
def test_failures_are_shown_with_what_they_said(tmp_path, monkeypatch, kind):
    console = Console(file=io.StringIO(), width=200, height=50, force_terminal=kind == "live", color_system=None)
    reporter = (LiveDashboard if kind == "live" else PlainReporter)(console)
    outcome = run_quickly(write_shaky_run(tmp_path, "shaky", run__generations=2), monkeypatch, reporter=reporter)
    if kind == "live":
        console.print(reporter)
    assert MESSAGE in console.file.getvalue()
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["error_examples"] for row in rows] == [{"shaky/error": "KeyError: 'no such thing'"}] * 3
    assert all(row["errors/shaky/error"] >= 1 for row in rows)  # the start too, which has held-out problems alone
    assert any(MESSAGE in concern for concern in all_concerns(read_run(outcome.folder)))


def test_a_run_stops_when_no_completion_can_be_scored(tmp_path, monkeypatch):
    message = r"none of \d+ completions could be scored.*chat_style/error: TypeError: string indices must be integers"
    config = write_shaky_run(tmp_path, "chat_style")
    with pytest.raises(RewardError, match=message):
        run_quickly(config, monkeypatch)
    with pytest.raises(RewardError, match=message):
        plan(config)


def test_the_surrogate_counts_failures_too(tmp_path, monkeypatch):
    fitness = {"name": "surrogate", "prompts": 16, "samples": 4, "options": {"pairs": 2, "kl_limit": 10.0}}
    reporter = Recorder()
    config = write_shaky_run(tmp_path, "shaky", fitness=fitness, run__generations=1, sampling__temperature=1.0)
    run_quickly(config, monkeypatch, reporter=reporter)
    assert reporter.rows[1]["errors/shaky/error"] > 1


def test_a_reward_sees_the_tag_that_a_prompt_opens(tmp_path, monkeypatch):
    config = write_shaky_run(tmp_path, "thinks", run__generations=1)
    rows = [{"prompt": f"What is {a} + 2?<think>\n", "answer": str(a + 2)} for a in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reporter = Recorder()
    run_quickly(config, monkeypatch, reporter=reporter)
    assert reporter.rows[0]["validation"]["low"] > 1.0


def test_a_tag_that_a_prompt_opens_is_found_in_its_text_or_its_tokens():
    backend = FakeBackend("any")
    chats = ["2 + 2 = ?<think>\n", "<think> is a tag", "<think>\n4</think>\n"]
    assert prefilled(backend, chats) == ["<think>\n", "", ""]
    assert [prefilled(backend, [backend.encode(text)]) for text in chats] == [["<think>\n"], [""], [""]]
