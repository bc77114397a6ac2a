"""Numbers, prompts and verdicts as people read them."""

import pytest

from esalign.report.terminal.live import sparkline
from esalign.report.words import compact, count, duration, judge_gain, memory, number, one_line, prompt_text
from esalign.run.statistics import Estimate


def test_a_sparkline_spans_its_lowest_and_highest_value():
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([3.0, 3.0], 10) == "▁▁"
    assert sparkline([9.0, 0.0, 1.0], 2) == "▁█"
    assert sparkline([], 10) == ""
    assert sparkline([1.0], -3) == ""


def test_numbers_are_written_for_people():
    assert [duration(seconds) for seconds in (0.04, 9.96, 59.4, 59.6, 3599.6, 7500)] == [
        "0.0 s", "10 s", "59 s", "1 min 00 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
    assert [compact(value) for value in (912, 9999, 152_300, 999_900, 1_240_000, 3.08e9)] == [
        "912", "9,999", "152 k", "1 M", "1.24 M", "3.08 G",
    ]  # fmt: skip
    assert [memory(mib) for mib in (812.4, 3481.6, None)] == ["812 MiB", "3.4 GiB", "n/a"]
    assert [number(value) for value in (0.5, None, float("nan"), float("inf"))] == ["0.500", "n/a", "n/a", "n/a"]
    assert count(1240512) == "1,240,512"


def test_prompts_of_every_kind_become_text():
    assert prompt_text("as it is") == "as it is"
    assert prompt_text([{"role": "user", "content": "hello"}]) == "user: hello"
    assert prompt_text([{"role": "assistant", "content": "", "tool_calls": ["add(1)"]}]) == "assistant: ['add(1)']"
    assert prompt_text([5, 6]) == "2 token ids: 5 6"


@pytest.mark.parametrize("width", [10, 11, 40])
def test_one_line_is_never_too_long(width):
    line = one_line("word " * 40, width)
    assert len(line) <= width
    assert line.startswith("wor")


def test_verdicts_name_the_side_of_zero():
    def kind(low, high, generation=3):
        return judge_gain(Estimate((low + high) / 2, low, high, 100), generation).kind

    assert kind(0.01, 0.03) == "better"
    assert kind(-0.03, -0.01) == "worse"
    assert kind(-0.01, 0.03) == "unclear"
    assert kind(0.0, 0.03) == "unclear"
    assert kind(0.01, 0.03, generation=0) == "none"
    assert kind(float("nan"), float("nan")) == "unclear"
