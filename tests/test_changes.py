"""Problems gained and lost between start and result, and the form that the gained completions share."""

import io
import json

import pytest
from quick_runs import Recorder, run_quickly, write_quick_run
from rich.console import Console

from esalign.report.changes import Change, describe_new_form, find_changes
from esalign.report.page import write_report
from esalign.report.terminal import show_result


def rows_of(state, *texts_and_rewards):
    return [
        {"state": state, "problem": i, "prompt": f"{i} + 8 =", "completion": text, "reward": reward}
        for i, (text, reward) in enumerate(texts_and_rewards)
    ]


def test_problems_are_gained_and_lost_the_most_rewarded_first():
    start = rows_of("start", ("a", 0.0), ("b", 1.0), ("c", 0.5), ("d", 0.5), ("e", None), ("f", 0.2))
    result = rows_of("result", ("A", 0.5), ("B", 0.2), ("C", 1.0), ("D", 0.5), ("E", 1.0), ("F", 1.0))
    changes = find_changes([*result, *start])
    assert [(one.before, one.after) for one in changes.gained] == [("f", "F"), ("c", "C"), ("a", "A")]
    assert [(one.before, one.after) for one in changes.lost] == [("b", "B")]
    assert changes.counts == "3 of 5 test problems gained, 1 lost"


def test_there_are_no_changes_without_both_sides():
    assert find_changes([]) is None
    assert find_changes(rows_of("start", ("a", 0.0))) is None
    assert find_changes([*rows_of("start", ("a", None)), *rows_of("result", ("a", 1.0))]) is None


def changed(*texts):
    return [Change(f"{i} + 75 =", "no idea", text.format(i), 0.0, 1.0) for i, text in enumerate(texts)]


NEW_FORMS = {
    "the prompt": ("{} + 75", "repeat a piece of their prompt"),
    "the prompt in words": ("{} + 75 =", "repeat a piece of their prompt"),
    "a repetition": ("so " * 40, "say one thing again and again"),
    "a shape": ("It's {} km", "have the form 'It ' s # km'"),
    "an end": ("some words {} that differ at number {} and are many, but end alike", "end in 'but end alike'"),
    "a mark": ("This is long: {0} {0} {0} {0} {0} \\boxed{{{0}}} and it ends in {0} ways, word{0}", "have a '\\boxed'"),
}


@pytest.mark.parametrize("case", NEW_FORMS)
def test_a_form_that_the_start_never_used_is_said(case):
    text, form = NEW_FORMS[case]
    texts = [text.replace("{}", "{0}") for _ in range(5)]
    if case == "a mark":
        texts = [f"{word} {text} {word}" for word in ("one", "two", "three", "four", "five")]
    said = describe_new_form(changed(*texts), [("1 + 1 =", "no idea"), ("2 + 2 =", "The answer is 4, of course.")])
    assert said.startswith(f"5 of 5 gained completions {form}, as none of the start's does")


def test_a_form_that_the_start_knows_or_few_share_is_not_said():
    known = [("1 + 1 =", "3 km"), ("2 + 2 =", "1 + 1 = 2, so it is 4.")]
    assert describe_new_form(changed("{0} km", "{0} km", "{0} km"), known) == ""
    assert describe_new_form(changed("{0} + 75", "{0} + 75"), known) == ""
    assert describe_new_form(changed("{0} + 75", "one", "two words", "now three words"), known) == ""


@pytest.mark.slow
def test_a_finished_run_shows_its_changes_in_report_and_terminal(tmp_path, monkeypatch):
    config = write_quick_run(tmp_path, run__generations=25, fitness__prompts=16, optimizer__population=12)
    outcome = run_quickly(config, monkeypatch)
    file = outcome.folder / "completions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["state"], row["problem"]) for row in rows] == [(s, i) for s in ("start", "result") for i in range(16)]
    gained = sum(after["reward"] > before["reward"] for before, after in zip(rows[:16], rows[16:], strict=True))
    assert gained > 0
    assert f"{gained} of 16 test problems gained" in shown(outcome)[0]
    echoes = [{**row, "completion": row["prompt"], "reward": 1.0} for row in rows[16:]]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:16], *echoes]))
    for text in shown(outcome):
        assert "16 of 16 test problems gained, 0 lost" in text
        assert "16 of 16 gained completions repeat a piece of their prompt" in text
        assert echoes[0]["prompt"] in text
    assert "16 gained, the most rewarded first" in shown(outcome)[1]


def shown(outcome):
    """Return what the terminal and the report show of a finished run."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show_result(console, outcome.result, outcome.verification, outcome.folder)
    return console.file.getvalue(), write_report(outcome.folder).read_text()


def test_a_resumed_run_knows_what_the_start_wrote(tmp_path, monkeypatch):
    config = write_quick_run(tmp_path, run__generations=2)
    with pytest.raises(KeyboardInterrupt):
        run_quickly(config, monkeypatch, reporter=Recorder(fail_after=2))
    before = (tmp_path / "runs" / "quick" / "completions.jsonl").read_text()
    outcome = run_quickly(config, monkeypatch, resume=True)
    assert (outcome.folder / "completions.jsonl").read_text().startswith(before)
