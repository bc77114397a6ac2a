"""The report: one page, from a run's files alone, that says what happened and loads nothing."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from esalign.errors import CheckpointError
from esalign.report.page import write_report

HOSTILE = (
    "</pre><script>alert('x')</script><img src=http://example.com/x.png onerror=alert(1)> & \"quoted\" {{ 7 * 7 }}"
)


def interval(mean, half=0.05, count=100):
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": count}


def row(generation, **more):
    totals = {
        "tokens": {"generated": 1000 * generation, "prompt": 5000 * generation, "scored": 0, "held_out": 400},
        "machine": {"search_seconds": 2.0 * generation, "held_out_seconds": 3.0, "tokens_per_second": 500.0},
    }
    return {"generation": generation, **more, **totals}


def searched(generation, **more):
    fitness = {"mean": 0.2 + 0.02 * generation, "max": 0.5, "min": 0.1, "std": 0.05}
    numbers = {"sigma": 0.3, "mean_norm": 0.1 * generation, "truncated": 0.01, "abstained": 0.0, "mean_tokens": 20.0}
    return row(generation, fitness=fitness, **{**numbers, **more})


ROWS = (
    row(0, validation=interval(0.2), **{"test/greedy": interval(0.21)}),
    searched(1),
    searched(2, validation=interval(0.25)),
    searched(3),
    searched(4, validation=interval(0.31)),
)
FEW = ROWS[:2]  # too few for most plots, which take the time
SAMPLES = tuple(
    {"generation": generation, "prompt": f"problem {generation}", "completion": f"answer {generation}", "reward": 1.0}
    for generation in range(5)
)


def make_result(*, gain=0.1, half=0.04, generation=4, **changes):
    comparison = {"start": interval(0.21), "result": interval(0.21 + gain), "gain": interval(gain, half)}
    return {
        "reason": "Stopped: all 4 generations done.",
        "generation": generation,
        "comparisons": {"test/greedy": comparison, "probe": {**comparison, "gain": interval(-0.02, 0.01)}},
        "kl": 0.0312,
        "totals": {key: ROWS[-1][key] for key in ("tokens", "machine")},
        "verification": {"good": True, "agreement": 1.0, "count": 32, "note": "32 of 32 completions equal"},
        "samples": [{"prompt": "test problem", "completion": "test answer", "reward": 0.5}],
        **changes,
    }


def write_run(folder, *, rows=ROWS, samples=SAMPLES, result=None, name="small"):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"run": {"name": name, "generations": 4}, "sampling": {"max_tokens": 32}, "rewards": [{"name": "math"}]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"numpy": "2.0"}}))
    for file, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / file).write_text(text, encoding="utf-8")
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.pieces = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data):
        self.pieces.append(data)


def read_page(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The page of a finished run."""
    return write_report(write_run(tmp_path_factory.mktemp("run"), result=make_result())).read_text(encoding="utf-8")


def test_a_finished_run_is_told_in_numbers_and_words(finished):
    text = Page(finished).text
    for expected in (
        "0.210 [0.160, 0.260]",
        "0.310 [0.260, 0.360]",
        "+0.100 [+0.060, +0.140]",
        "Mean reward on 100 unseen problems (test, greedy). Better: the gain's 95 % interval excludes zero.",
        "after generation 4",
        "Stopped: all 4 generations done.",
        "0.0312 nats per token",
        "a loss: the interval excludes zero",
        "32 of 32 completions equal",
        "test answer",
        "rewards.0.name math",
        "packages.numpy 2.0",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"gain": 0.01, "half": 0.05}, "No clear difference: the gain's 95 % interval includes zero"),
        ({"gain": -0.1, "half": 0.05}, "Worse: the loss's 95 % interval excludes zero"),
        ({"gain": 0.0, "half": 0.0, "generation": 0}, "No improvement found"),
    ],
)
def test_a_run_that_gained_nothing_says_so(tmp_path, changes, verdict):
    assert verdict in read_page(write_run(tmp_path, rows=FEW, result=make_result(**changes))).text


def test_an_unfinished_run_says_so_and_shows_its_validation(tmp_path):
    text = read_page(write_run(tmp_path)).text
    assert "This run is not finished: 4 of 4 generations are done" in text
    assert "best so far, generation 4 0.310" in text


def test_what_models_and_users_write_is_escaped(tmp_path):
    samples = [{"generation": 4, "prompt": [{"role": HOSTILE, "content": HOSTILE}], "completion": HOSTILE, "reward": 1}]
    rows = [ROWS[0], {**ROWS[1], f"errors/{HOSTILE}": 3}]
    result = make_result(
        reason=HOSTILE,
        samples=[{"prompt": HOSTILE, "start": HOSTILE, "completion": HOSTILE, "reward": None}],
        verification={"good": False, "note": HOSTILE},
    )
    result["comparisons"][HOSTILE] = result["comparisons"]["test/greedy"]
    page = read_page(write_run(tmp_path, rows=rows, samples=samples, result=result, name=HOSTILE))
    assert page.text.count("<script>alert('x')</script>") >= 9
    assert "{{ 7 * 7 }}" in page.text
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]


def test_the_page_refers_to_nothing_outside_itself(finished):
    page = Page(finished)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    for tag, key, value in page.attributes:
        if key in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (tag, key, value)
        elif not key.startswith("xmlns"):
            assert "//" not in value, (tag, key, value)


def test_ids_are_unique_and_all_references_have_a_target(finished):
    ids = re.findall(r'\bid="([^"]+)"', finished)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', finished)
    assert references
    assert set(references) <= set(ids)


def test_plots_have_labelled_axes_and_the_colours_of_the_page(finished):
    plots = re.findall(r"<svg.*?</svg>", finished, flags=re.DOTALL)
    assert len(plots) == 11
    for plot in plots:
        labels = Page(plot).text
        assert any(x in labels for x in ("generation", "generated tokens", "search time, seconds", "mean reward"))
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot)) == set()
        assert "var(--ink)" in plot
    assert "test, greedy" in Page(plots[3]).text


def test_equal_runs_give_equal_pages(finished, tmp_path):
    assert write_report(write_run(tmp_path, result=make_result())).read_text(encoding="utf-8") == finished


def test_a_distillation_has_updates_a_student_and_its_own_curves(tmp_path):
    numbers = {"loss": 0.4, "beta": 0.5, "reverse_kl": 0.4, "grad_norm": 1.0}
    rows = [
        row(
            generation,
            fitness={"mean": -0.4},
            validation=interval(0.2),
            **{"validation/minus-reverse-kl": interval(-0.5)},
            **numbers,
        )
        for generation in range(4)
    ]
    folder = write_run(tmp_path, rows=rows)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"generations": 4}, "student": {"path": "student"}}))
    page = read_page(folder)
    for expected in (
        "3 of 4 updates are done",
        "The training",
        "Loss",
        "Closeness to the teacher, held out",
        "Pull of",
    ):
        assert expected in page.text
    assert "generation" not in page.text.partition("Configuration")[0]
    assert "Step size" not in page.text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_that_has_hardly_begun_has_a_page(tmp_path, count):
    assert "not finished" in read_page(write_run(tmp_path, rows=ROWS[:count], samples=())).text


def test_numbers_that_were_not_finite_are_shown_as_missing(tmp_path):
    nothing = {"mean": None, "low": None, "high": None, "count": 0}
    rows = [row(0, validation=nothing), searched(1, sigma=None, mean_norm=None, validation=nothing), searched(2)]
    result = make_result(kl=None)
    result["comparisons"]["test/greedy"] = {"start": nothing, "result": interval(0.2), "gain": nothing}
    text = read_page(write_run(tmp_path, rows=rows, result=result)).text
    assert "n/a [n/a, n/a]" in text
    assert "Cannot be judged: no problem was scored both times" in text
    assert "KL to the start not measured" in text


def test_worries_are_summed_over_the_run_and_placed(tmp_path):
    rows = [ROWS[0], searched(1, **{"errors/math (timeout)": 2}), searched(2, truncated=0.4)]
    rows += [searched(3, truncated=0.6, **{"errors/math (timeout)": 5})]
    text = read_page(write_run(tmp_path, rows=rows)).text
    assert "7 completions could not be scored (math (timeout)) (generations 1, 3)" in text
    assert (
        "60% of completions were cut at the limit of 32 tokens: raise sampling.max_tokens? (generations 2, 3)" in text
    )


def test_completions_with_odd_characters_are_shown(tmp_path):
    odd = "line\u2028separator, next\u0085line, nul\x00, escape\x1b[31m, 東京 🙂"
    samples = [{"generation": 4, "prompt": "p", "completion": odd, "reward": None}]
    result = make_result(samples=[{"prompt": "\ud800", "completion": "c"}])
    folder = write_run(tmp_path, rows=FEW, samples=samples, result=result)
    text = read_page(folder).text
    assert "nul\ufffd, escape\ufffd[31m, 東京 🙂" in text
    assert "none (abstained)" in text


def test_long_completions_are_cut_with_a_count(tmp_path):
    samples = [{"generation": 4, "prompt": "p", "completion": "x" * 5000, "reward": 1.0}]
    text = read_page(write_run(tmp_path, rows=FEW, samples=samples)).text
    assert "x" * 4000 + " … (1,000 more)" in text
    assert "x" * 4001 not in text


def test_a_torn_last_line_is_passed_over(tmp_path):
    folder = write_run(tmp_path, rows=FEW)
    with (folder / "samples.jsonl").open("ab") as file:
        file.write('{"generation": 5, "prompt": "東京'.encode()[:-1])
    assert "1 of 4 generations" in read_page(folder).text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a run: it holds neither config.yaml nor metrics.jsonl"):
        write_report(tmp_path)


BROKEN = {
    "result cut short": ("result.json", '{"reason": "all 4', "result.json cannot be read"),
    "result empty": ("result.json", "", "result.json cannot be read"),
    "result no mapping": ("result.json", "[1]", "result.json holds a list"),
    "result without generation": ("result.json", '{"reason": "x"}', "result.json does not say which generation"),
    "comparisons without gain": (
        "result.json",
        json.dumps(make_result(comparisons={"test/greedy": {"start": interval(0.2)}})),
        "'comparisons' of result.json",
    ),
    "comparisons a list": ("result.json", json.dumps(make_result(comparisons=[1])), "'comparisons' of result.json"),
    "totals of text": ("result.json", json.dumps(make_result(totals={"tokens": {"generated": "x"}})), "'totals' of"),
    "samples of text": ("result.json", json.dumps(make_result(samples=["x"])), "'samples' of result.json"),
    "kl of text": ("result.json", json.dumps(make_result(kl="small")), "'kl' of result.json"),
    "verification of text": ("result.json", json.dumps(make_result(verification="good")), "'verification' of"),
    "environment empty": ("environment.json", "", "environment.json cannot be read"),
    "environment no text": ("environment.json", b"\xff\xfe\x00", "environment.json cannot be read"),
    "configuration broken": ("config.yaml", "{broken: [", "config.yaml cannot be read"),
    "configuration a list": ("config.yaml", "[1]", "config.yaml holds a list"),
    "run of text": ("config.yaml", "run: small\nsampling: 3\n", "'sampling' of config.yaml"),
    "metrics not JSON": ("metrics.jsonl", "nonsense\n" + json.dumps(ROWS[0]) + "\n", "1 lines of metrics.jsonl"),
    "metrics a number": ("metrics.jsonl", "3\n" + json.dumps(ROWS[0]) + "\n", "1 lines of metrics.jsonl"),
    "metrics without generation": ("metrics.jsonl", '{"fitness": {"mean": 1}}\n{}\n', "2 lines of metrics.jsonl"),
    "fitness a number": ("metrics.jsonl", '{"generation": 1, "fitness": 3}\n', "'fitness' of metrics.jsonl"),
    "validation of text": (
        "metrics.jsonl",
        '{"generation": 1, "validation": {"mean": "x"}}\n{"generation": 2, "validation": []}\n',
        "'validation' of metrics.jsonl",
    ),
    "sigma a mapping": ("metrics.jsonl", '{"generation": 1, "sigma": {"a": 1}}\n', "'sigma' of metrics.jsonl"),
    "errors of text": (
        "metrics.jsonl",
        '{"generation": 1, "errors/math (timeout)": "x"}\n',
        "'errors/math (timeout)' of",
    ),
    "samples not JSON": ("samples.jsonl", "x\ny\n{}\n", "2 lines of samples.jsonl"),
    "samples a list": ("samples.jsonl", "[]\n", "1 lines of samples.jsonl"),
    "rewards of text": (
        "samples.jsonl",
        '{"generation": "x", "reward": "x", "prompt": 3}\n',
        "'reward' of samples.jsonl",
    ),
}


@pytest.mark.parametrize(("file", "content", "said"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_left_out_of_the_report_and_named(tmp_path, file, content, said):
    folder = write_run(tmp_path, rows=FEW, result=make_result())
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    text = read_page(folder).text
    assert said in text
    assert "left out" in text
