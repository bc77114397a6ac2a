"""What the terminal shows of a run: legible at any width, safe, honest about gains, and plain elsewhere."""

import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from esalign.config.run import RunConfig
from esalign.config.sections import RunSection
from esalign.data import Note
from esalign.report.terminal import LiveDashboard, PlainReporter, make_reporter, show_plan, show_result
from esalign.report.terminal.progress import RunProgress
from esalign.run.first_step import FirstStep
from esalign.run.reporter import About
from esalign.run.result import Comparison, Result
from esalign.run.statistics import Estimate
from esalign.run.verify import Verification
from esalign.types import Sample

DESCRIPTION = "24 candidates x 100 problems each, cma-es on torch"


def make_about(kind="search", description=DESCRIPTION, **run):
    return About(kind, description, RunSection(**{"generations": 20, **run}), max_tokens=32)


def interval(mean, half=0.05, count=100):
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": count}


def row(generation, *, held_out=10.0, **more):
    totals = {
        "tokens": {"generated": 3000 * generation, "prompt": 0, "scored": 0, "held_out": 0},
        "machine": {"search_seconds": 2.0 * generation, "held_out_seconds": held_out, "peak_rss_mib": 812.0},
    }
    return {"generation": generation, **more, **totals}


def searched(generation, **more):
    fitness = {"mean": 0.2 + 0.01 * generation, "max": 0.5, "min": 0.1, "std": 0.05}
    return row(generation, fitness=fitness, sigma=0.3, mean_norm=0.1 * generation, truncated=0.0, **more)


START = row(0, validation=interval(0.2), **{"test/greedy": interval(0.21), "probe": interval(0.6)})


def make_console(*, width=80, height=30, terminal=True):
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, color_system=None, highlight=False
    )


def printed(console):
    return console.file.getvalue()


def frame(dashboard, *, width=80, height=30):
    console = make_console(width=width, height=height)
    console.print(dashboard)
    return printed(console)


@pytest.fixture
def dashboard(tmp_path):
    """A dashboard after three generations, on a clock that stands still."""
    made = LiveDashboard(make_console(), clock=lambda: 7.0)
    made.start(make_about(), tmp_path, 0)
    sample = {"generation": 3, "prompt": "What is 6 * 7?", "completion": "It is 42.", "reward": 1.0}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    for one in (START, searched(1), searched(2), searched(3, validation=interval(0.3))):
        made.generation(one)
    return made


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_dashboard_fits_the_terminal_and_shows_the_run(dashboard, width):
    shown = frame(dashboard, width=width)
    assert max(len(line) for line in shown.splitlines()) <= min(width, 120)
    for expected in (
        "3 of 20",
        "15%",
        "0.300 [0.250, 0.350]",
        "start 0.200",
        "0.300 at generation 3, +0.100 over the start",
        "mean 0.230   max 0.500   std 0.050",
        "sigma 0.3",
        "9,000 generated   1,500 per second",
        "about 44 s left",
        "812 MiB",
        "What is 6 * 7?",
        "It is 42.",
    ):
        if width >= 80 or expected not in ("start 0.200", "812 MiB"):
            assert expected in shown


def test_the_dashboard_leaves_the_sample_out_of_a_low_terminal(dashboard):
    assert "What is 6 * 7?" not in frame(dashboard, height=14)
    assert "about 44 s left" in frame(dashboard, height=14)


def test_the_last_frame_stays_and_the_cursor_comes_back(tmp_path):
    console = make_console()
    with LiveDashboard(console) as dashboard:
        dashboard.stage("loading")
        dashboard.start(make_about(generations=1), tmp_path, 0)
        dashboard.generation(START)
        dashboard.generation(searched(1, validation=interval(0.3)))
        dashboard.stage("judging the result on held-out problems")
    last = printed(console).rpartition("esalign: ")[2]
    assert "1 of 1" in last
    assert "100%" in last
    assert "judging" not in last
    assert printed(console).endswith("\x1b[?25h")


def test_the_stage_is_shown_until_the_next_generation(dashboard):
    dashboard.stage("judging the result", 1200, 3000)
    assert "judging the result: 1,200 of 3,000" in frame(dashboard)
    dashboard.generation(searched(4))
    assert "judging the result" not in frame(dashboard)


def test_the_workers_of_a_cluster_are_shown_with_what_happened_to_them(tmp_path):
    dashboard = LiveDashboard(make_console())
    dashboard.start(make_about(), tmp_path, 0)
    found = row(1)
    happened = {"workers": 3, "worker_tokens_per_second": 5210.0, "lost": 1, "redone": 2, "waited": 4.2}
    dashboard.generation({**found, "machine": {**found["machine"], **happened}})
    shown = " ".join(frame(dashboard, width=100).split())
    assert "3 workers, 5,210 tokens/s while they work 1 lost 2 units redone waited 4.2 s" in shown


def test_warnings_stay_above_the_panel(tmp_path):
    console = make_console()
    with LiveDashboard(console) as dashboard:
        dashboard.start(make_about(), tmp_path, 0)
        dashboard.generation(START)
        dashboard.warn("all candidates have the same fitness")
        dashboard.generation(searched(1))
    assert printed(console).count("warning: all candidates have the same fitness") == 1


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(tmp_path):
    evil = "\x1b[2Jgone\x1b]0;title\x07 \u202eright to left\u202c \x9b31m[bold]markup[/bold]"
    (tmp_path / "samples.jsonl").write_text(json.dumps({"generation": 0, "prompt": evil, "completion": evil}) + "\n")
    live, plain = LiveDashboard(make_console()), PlainReporter(make_console())
    for reporter in (live, plain):
        reporter.start(make_about(), tmp_path, 0)
        reporter.generation(START)
        reporter.warn(evil)
    shown = [frame(live), printed(live._console), printed(plain._console)]
    assert all("[bold]markup[/bold]" in text for text in shown)
    assert not re.search(r"[\x1b\x07\x9b\u202e]", "".join(shown))


def test_worries_are_shown_and_errors_are_summed(dashboard):
    dashboard.generation(searched(4, **{"errors/math (timeout)": 2}))
    dashboard.generation({**searched(5, **{"errors/math (timeout)": 3}), "truncated": 0.43})
    shown = " ".join(frame(dashboard).replace("│", " ").split())
    assert "! 5 completions could not be scored (math (timeout))" in shown
    assert "! 43% of completions were cut at the limit of 32 tokens: raise sampling.max_tokens?" in shown


def test_time_left_is_measured_generations_and_the_final_judgement(tmp_path):
    progress = RunProgress(make_about(), tmp_path)
    progress.add(START)
    assert progress.seconds_left is None
    progress.add(searched(1))
    progress.add(searched(2, held_out=11.0, validation=interval(0.2)))
    assert progress.seconds_left == pytest.approx(18 * (2.0 + 0.5) + 10.0)


def test_time_goes_on_between_generations(tmp_path):
    now = [100.0]
    dashboard = LiveDashboard(make_console(), clock=lambda: now[0])
    dashboard.start(make_about(), tmp_path, 0)
    for one in (START, searched(1)):
        dashboard.generation(one)
    now[0] += 5.0
    assert "17 s so far   about 43 s left" in frame(dashboard)  # 10 + 2 + 5; 19 * 2 + 10 - 5


def test_time_left_respects_the_time_limit(tmp_path):
    progress = RunProgress(make_about(max_minutes=0.2), tmp_path)
    for one in (START, searched(1), searched(2)):
        progress.add(one)
    assert progress.seconds_left == pytest.approx(4 * 2.0 + 10.0)  # 12 s in generations of 2 s, 4 s of them gone


def test_a_resumed_run_remembers_what_came_before(tmp_path):
    rows = (START, searched(1, validation=interval(0.35)), searched(2))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    dashboard = LiveDashboard(make_console())
    dashboard.start(make_about(), tmp_path, 2)
    shown = frame(dashboard)
    assert "2 of 20" in shown
    assert "0.350 at generation 1" in shown


def test_plain_output_is_one_line_an_event_without_escapes(tmp_path):
    console = make_console(terminal=False)
    with PlainReporter(console) as reporter:
        reporter.start(make_about(), tmp_path, 0)
        reporter.stage("judging the start on held-out problems")
        reporter.generation(START)
        reporter.generation(searched(1))
        reporter.generation({**searched(2, validation=interval(0.3)), "truncated": 0.5})
        reporter.generation({**searched(3), "truncated": 0.6})
        reporter.generation({**searched(4), "fitness": {"mean": 0.2, "max": 0.2, "std": 0.0}})  # the run warns of it
        reporter.warn("something\nwith two lines")
    lines = printed(console).splitlines()
    assert lines[0] == f"run {tmp_path} begins: 20 generations, 24 candidates x 100 problems each, cma-es on torch"
    assert lines[1] == "judging the start on held-out problems"
    assert lines[2].startswith("start | validation 0.200 [0.150, 0.250] | test, greedy 0.210")
    assert lines[3].startswith(" 1/20 | fitness 0.210 max 0.500 std 0.050 | sigma 0.3 | 1,500 tokens/s")
    assert lines[4].endswith("validation 0.300 [0.250, 0.350], start 0.200, best so far")
    assert lines[5] == "warning: 50% of completions were cut at the limit of 32 tokens: raise sampling.max_tokens?"
    assert lines[6].startswith(" 3/20")
    assert lines[7].startswith(" 4/20")
    assert lines[8:] == ["warning: something with two lines"]
    assert "\x1b" not in printed(console)


def test_plain_output_says_once_a_minute_how_far_a_stage_is():
    console, now = make_console(terminal=False), [0.0]
    reporter = PlainReporter(console, clock=lambda: now[0])
    for second in range(0, 150, 10):
        now[0] = float(second)
        reporter.stage("judging the start", second // 10, 1000)
    reporter.stage("loading")
    assert printed(console).splitlines() == [
        "judging the start",
        "judging the start: 6 of 1,000",
        "judging the start: 12 of 1,000",
        "loading",
    ]


def test_a_distillation_has_updates_and_shows_what_it_recorded(tmp_path):
    about = make_about("distillation", generations=200)
    live, plain = LiveDashboard(make_console()), PlainReporter(make_console(terminal=False))
    for reporter in (live, plain):
        reporter.start(about, tmp_path, 0)
        reporter.generation(START)
        reporter.generation(row(1, fitness={"mean": -0.4}, validation=interval(0.3), beta=0.25, reverse_kl=0.4))
    assert "at update 1, +0.100" in frame(live)
    assert "beta 0.25   reverse KL 0.4" in frame(live)
    assert "fitness -0.400 | beta 0.25 | reverse KL 0.4 |" in printed(plain._console)
    assert "n/a" not in frame(live) + printed(plain._console)


def test_only_terminals_of_some_size_get_the_dashboard():
    assert isinstance(make_reporter(make_console()), LiveDashboard)
    assert isinstance(make_reporter(make_console(terminal=False)), PlainReporter)
    assert isinstance(make_reporter(make_console(width=40)), PlainReporter)
    assert isinstance(make_reporter(make_console(height=8)), PlainReporter)


def test_a_terminal_that_knows_only_ascii_gets_plain_lines(tmp_path):
    buffer = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    reporter = make_reporter(Console(file=buffer, width=80, height=30, force_terminal=True, color_system=None))
    reporter.warn("naïve 東京")
    buffer.seek(0)
    assert buffer.read() == "warning: na?ve ??\n"


def make_result(*, gain=0.1, half=0.04, generation=12, probe=-0.02):
    start = Estimate(0.2, 0.15, 0.25, 1000)
    comparisons = {
        "test/greedy": Comparison(
            start, Estimate(0.2 + gain, 0.25, 0.35, 1000), Estimate(gain, gain - half, gain + half, 1000)
        ),
        "test/sampled": Comparison(start, start, Estimate(0.0, -0.03, 0.03, 1000)),
        "probe": Comparison(start, start, Estimate(probe, probe - 0.01, probe + 0.01, 256)),
    }
    totals = {
        "tokens": {"generated": 1234567, "held_out": 2048},
        "machine": {
            "search_seconds": 250.0,
            "held_out_seconds": 31.0,
            "tokens_per_second": 4938.3,
            "peak_rss_mib": 2048,
        },
    }
    return Result("all 20 generations done", generation, comparisons, (), 0.0312, totals)


GOOD = Verification(good=True, agreement=1.0, count=32, note="32 of 32 greedy completions equal the engine's")


@pytest.mark.parametrize("width", [80, 100, 130, 160])
def test_the_final_table_fits_and_shows_both_sides(width):
    console = make_console(width=width)
    show_result(console, make_result(), GOOD, Path("runs/quickstart"))
    shown = printed(console)
    assert "…" not in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    text = " ".join(shown.split())
    for expected in (
        "test, greedy: better: the gain's 95 % interval excludes zero",
        "[0.150, 0.250]",
        "[0.250, 0.350]",
        "[+0.060, +0.140]",
        "1,000 problems",
        "after generation 12 (all 20 generations done)",
        "KL to the start 0.0312 nats per token; off-task probe -0.020 [-0.030, -0.010]: lost",
        "1,234,567 generated",
        "4 min 10 s of search",
        "2.0 GiB",
        "32 of 32 greedy completions equal the engine's",
        "runs/quickstart/adapter",
        "runs/quickstart/report.html",
    ):
        assert expected in text


def test_what_was_saved_is_told_by_its_own_name():
    console = make_console(width=100)
    show_result(console, make_result(), GOOD, Path("runs/quickstart"), saved="model")
    shown = printed(console)
    assert "runs/quickstart/model" in shown
    assert "adapter" not in shown


def test_a_gain_that_may_be_chance_and_a_start_that_was_best_are_said_plainly():
    for result, expected in (
        (make_result(gain=0.01), "no clear difference: the gain's 95 % interval includes zero"),
        (make_result(gain=-0.1), "worse: the loss's 95 % interval excludes zero"),
        (make_result(gain=0.0, generation=0), "no improvement found: nothing beat the start"),
    ):
        console = make_console()
        show_result(console, result, None, Path("runs/a"))
        assert expected in " ".join(printed(console).split())


def test_long_paths_are_printed_whole():
    folder = Path("a-folder-with-a-long-name") / ("x" * 90)
    console = make_console()
    show_result(console, make_result(), GOOD, folder)
    assert str(folder / "report.html") in printed(console)


def test_a_plan_shows_its_size_and_sample_completions():
    sample = Sample("What is 6 * 7?", "42", 1.0)
    config = RunConfig.model_validate(
        {"model": {"path": "m", "adapter": "a"}, "data": {"source": "d.jsonl"}, "rewards": [{"name": "math"}]}
    )
    plan = SimpleNamespace(
        config=config,
        dim=384,
        step=FirstStep(sigma=0.50004, changed=0.25, broken=0.125, broken_at_start=0.0),
        reliability=0.314,
        problems=(5000, 256, 1000),
        resolution=0.0866,
        tokens=1200000,
        seconds=250.0,
        columns={"prompt": "question"},
        notes=(Note("dropped", "20 of 240 rows"),),
        concerns=("reward math abstains",),
        samples=(sample,),
    )
    console = make_console()
    show_plan(console, plan)
    text = " ".join(printed(console).split())
    for expected in (
        "384 singular values",
        "sigma 0.5 changes 25% of greedy completions; 12% of them are empty, cut or repeat themselves, 0% at the start",
        "5,000 to train on",
        "gains below 0.087 on the 256 validation problems are noise",
        "31% of the variance between these candidates' mean rewards",
        "about 1.2 M generated tokens",
        "4 min 10 s",
        "'question' is taken for the prompt",
        "dropped 20 of 240 rows",
        "reward math abstains",
        "What is",
    ):
        assert expected in text
    plan.resolution = math.inf
    console = make_console()
    show_plan(console, plan)
    assert "as the rewards abstained on the others" in " ".join(printed(console).split())
