"""Nothing of the data is changed or dropped without a word: what was is counted, shown by a dry run, and reported."""

import json
from pathlib import Path

import pytest
from quick_runs import Recorder, run_quickly, write_quick_run
from test_data import write_jsonl, write_parquet

from esalign.commands.align import plan
from esalign.config.distill import DistillConfig
from esalign.config.sections import DataSection
from esalign.config.sft import SftConfig
from esalign.data import Source, canonical, load_dataset, load_examples, make_splits
from esalign.errors import DataError

SMALL = {"validation_size": 2, "test_size": 2}


def split(folder, rows, **options):
    return make_splits(Source(source=write_jsonl(folder / "a.jsonl", rows)), **{**SMALL, **options})


def everything(splits):
    return [example for part in (splits.train, splits.validation, splits.test) for example in part.examples]


def texts(notes, kind):
    return [note.text for note in notes if note.kind == kind]


ALPACA = [
    {"instruction": f"Task {n % 6}.", "input": f"number {n}" if n % 4 else "", "output": str(n)} for n in range(24)
]


def test_alpacas_input_stands_below_the_instruction(tmp_path):
    splits = split(tmp_path, ALPACA)
    found = {example.columns["output"]: example.prompt for example in everything(splits)}
    assert len(found) == 24
    assert (found["7"], found["8"]) == ("Task 1.\n\nnumber 7", "Task 2.")
    assert "'input' of " in " ".join(texts(splits.notes, "assumed"))
    assert "in 18 of 24 rows" in " ".join(texts(splits.notes, "assumed"))


def test_dollys_context_stands_below_the_instruction_and_nothing_is_joined_that_is_named(tmp_path):
    dolly = [{"instruction": "Sum up.", "context": "Rain fell.", "response": "Rain."}]
    source = write_jsonl(tmp_path / "a.jsonl", dolly)
    assert load_examples(source)[0].prompt == "Sum up.\n\nRain fell."
    assert load_examples(source, template="{context}\n{instruction}")[0].prompt == "Rain fell.\nSum up."
    assert load_examples(source, template="Do: {prompt}")[0].prompt == "Do: Sum up.\n\nRain fell."
    assert load_examples(source, columns={"prompt": "instruction"})[0].prompt == "Sum up."
    assert load_examples(source, columns={"hint": "context"})[0].prompt == "Sum up."


@pytest.mark.parametrize("name", ["context", "choices", "tools", "system", "history"])
def test_a_column_that_belongs_into_prompts_and_is_in_none_is_said(tmp_path, name):
    rows = [{"question": f"{n}?", "answer": "a", name: ["x"] if n else None} for n in range(4)]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    [told] = texts(load_dataset(Source(source=source)).notes, "dropped")
    assert told.startswith(f"column '{name}' of ")
    assert "filled in 3 of 4 rows, is in no prompt" in told
    assert not load_dataset(Source(source=source, template=f"{{question}} {{{name}}}")).notes[:0]
    assert not texts(load_dataset(Source(source=source, columns={"hint": name})).notes, "dropped")


def test_equal_prompts_with_other_answers_are_all_kept_in_one_split(tmp_path):
    rows = [{"prompt": f"question {n // 2}", "answer": str(n)} for n in range(40)]
    splits = split(tmp_path, rows, validation_size=10, test_size=10)
    assert sorted(int(example.columns["answer"]) for example in everything(splits)) == list(range(40))
    parts = [{example.prompt for example in part.examples} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert [len(part.examples) for part in (splits.train, splits.validation, splits.test)] == [20, 10, 10]
    [told] = texts(splits.notes, "assumed")
    assert told.startswith("20 of 40 rows of ")
    assert "differ in 'answer'" in told


def test_equal_prompts_with_other_context_columns_are_kept(tmp_path):
    rows = [{"prompt": f"Write {n}.", "answer": "x", "word": word} for n in range(9) for word in ("sea", "sun")]
    splits = split(tmp_path, rows)
    assert len(everything(splits)) == 18
    assert splits.duplicates == 0


def test_rows_that_are_equal_in_all_columns_are_dropped_and_counted(tmp_path):
    rows = [{"prompt": f"question {n % 15}", "answer": str(n % 15)} for n in range(40)]
    splits = split(tmp_path, rows)
    assert (len(everything(splits)), splits.duplicates) == (15, 25)
    [told] = texts(splits.notes, "dropped")
    assert told.startswith("25 of 40 rows of ")


def test_what_is_left_of_a_prompt_whose_split_is_full_is_in_no_other_and_counted(tmp_path):
    rows = [{"prompt": f"question {n // 4}", "answer": str(n)} for n in range(40)]
    splits = split(tmp_path, rows, validation_size=3, test_size=5)
    assert [len(part.examples) for part in (splits.validation, splits.test)] == [3, 5]
    prompts = [{example.prompt for example in part.examples} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert texts(splits.notes, "dropped")[0].startswith("4 of 40 rows of ")
    assert len(everything(splits)) == 36


def test_one_prompt_in_all_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="too many rows with equal prompts: 0 are left to train on"):
        split(tmp_path, [{"prompt": "Go.", "answer": str(n)} for n in range(40)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 5²?", "What is 52?"),
        ("½ of 8", "12 of 8"),
        ("if x:\n    a()\nb()", "if x:\n    a()\n    b()"),
        ("if x:\n\ta()", "if x:\n        a()"),
        ("a\nb", "a b"),
        ("ﬁne", "fine"),
        ("x₁", "x1"),
        ("①", "1"),
    ],
)
def test_prompts_that_a_reader_can_tell_apart_are_two_problems(tmp_path, one, other):
    rows = [{"prompt": text, "answer": "1"} for text in (one, other, "a0", "a1", "a2")]
    assert {example.prompt for example in everything(split(tmp_path, rows))} >= {one, other}
    assert canonical(({"role": "user", "content": one},)) != canonical(({"role": "user", "content": other},))


@pytest.mark.parametrize(
    ("one", "other"), [("2 + 2 =", "2 +  2 = \r\n"), ("caf\u00e9", "cafe\u0301"), ("a\n b", "a \n b\n")]
)
def test_prompts_that_a_reader_cannot_tell_apart_are_one(one, other):
    assert canonical(one) == canonical(other)


def test_a_sample_and_what_no_split_takes_are_said(tmp_path):
    rows = [{"prompt": f"{n}?", "answer": "1"} for n in range(50)]
    data = load_dataset(Source(source=write_jsonl(tmp_path / "b.jsonl", rows)), size=20)
    assert texts(data.notes, "cut")[0].startswith("20 of 50 rows of ")
    assert texts(split(tmp_path, rows, train_size=6).notes, "cut")[0].startswith("40 of 50 rows of ")
    assert not split(tmp_path, rows).notes


def test_a_template_leaves_the_place_of_a_null_empty_and_says_so(tmp_path):
    rows = [{"prompt": "Go.", "hint": None if n else "left"} for n in range(3)]
    data = load_dataset(Source(source=write_jsonl(tmp_path / "a.jsonl", rows), template="{prompt} {hint}!"))
    assert [example.prompt for example in data.examples] == ["Go. left!", "Go. !", "Go. !"]
    assert "left empty in 2 of 3 rows" in texts(data.notes, "changed")[0]


def test_missing_answers_are_said(tmp_path):
    rows = [{"prompt": "Go.", "answer": None if n else "left"} for n in range(3)]
    data = load_dataset(Source(source=write_parquet(tmp_path / "a.parquet", rows)))
    assert "the answer is null in 2 of 3 rows" in texts(data.notes, "dropped")[0]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_messages_keep_what_templates_read_and_what_is_left_out_is_counted(tmp_path):
    turns = [
        {"role": "user", "content": "1 + 1?", "timestamp": 3},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None},
        {"role": "tool", "content": [{"type": "text", "text": "2"}], "tool_call_id": "x"},
    ]
    data = load_dataset(Source(source=write_jsonl(tmp_path / "a.jsonl", [{"prompt": turns}])))
    assert data.examples[0].prompt == (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "tool_call_id": "x"},
    )
    assert texts(data.notes, "dropped")[0].startswith("'timestamp' of 1 messages")


BAD_ROWS = {
    "half a character in a prompt": ([{"prompt": "a"}, {"prompt": "b \ud83d"}], {}, r"row 1: the prompt holds \\ud83d"),
    "half a character in a message": (
        [{"prompt": [{"role": "user", "content": "\udc00"}]}],
        {},
        r"row 0: the prompt holds \\udc00",
    ),
    "half a character in an answer": ([{"prompt": "a", "answer": ["\ud83d"]}], {}, r"row 0: the answer holds \\ud83d"),
    "a number's format for text": (
        [{"prompt": "a", "answer": "4"}],
        {"template": "{prompt} {answer:.2f}"},
        r"row 0: data.template does not fit its columns \(answer = '4'\): Unknown format code 'f'",
    ),
    "a text's format for a list": (
        [{"prompt": "a", "hint": [1]}],
        {"template": "{prompt} {hint:>9}"},
        r"row 0: data.template does not fit its columns \(hint = \[1\]\)",
    ),
    "a format that is none": ([{"prompt": "a"}], {"template": "{prompt:{width}}"}, "does not fit its columns"),
    "an image in a message": (
        [{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}],
        {},
        "expected text under 'content'",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_give_one_clear_line_with_their_number(case, tmp_path):
    rows, reading, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message) as caught:
        load_examples(write_jsonl(tmp_path / "a.jsonl", rows), **reading)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_the_row_of_an_error_is_the_files_also_in_a_sample(tmp_path):
    rows = [{"prompt": f"{n}"} for n in range(30)]
    source = write_jsonl(tmp_path / "a.jsonl", [*rows[:17], {"prompt": " "}, *rows[17:]])
    with pytest.raises(DataError, match=r"row 17: the prompt is empty"):
        load_examples(source, size=31)


def section(**keys):
    return DataSection.model_validate({"source": "a.jsonl", "template": "{q}!", "columns": {"prompt": "q"}, **keys})


def test_sources_of_their_own_take_from_data_what_they_do_not_name():
    data = section(config="main", split="train", test={"split": "test"}, validation={"source": "b.jsonl"})
    assert data.test == Source(source="a.jsonl", config="main", split="test", template="{q}!", columns={"prompt": "q"})
    assert data.validation == Source(source="b.jsonl", template="{q}!", columns={"prompt": "q"})
    own = section(test={"source": "b.jsonl", "template": None, "columns": {"prompt": "p"}}).test
    assert own == Source(source="b.jsonl", columns={"prompt": "p"})
    assert section(system_prompt="Hi.", test={"source": "b.jsonl"}).test.system_prompt == "Hi."
    assert DataSection.model_validate(data.model_dump(mode="json")) == data


def test_sources_of_their_own_take_columns_and_options_one_by_one():
    named = {"columns": {"prompt": "q", "answer": "a"}, "options": {"low": 1, "high": 9}}
    data = section(**named, test={"columns": {"answer": "b"}, "options": {"high": 99}})
    assert data.test.columns == {"prompt": "q", "answer": "b"}
    assert data.test.options == {"low": 1, "high": 99}
    other = section(**named, test={"source": "b.jsonl", "columns": {}, "options": {"revision": "x"}})
    assert (other.test.columns, other.test.options) == ({}, {"revision": "x"})
    assert DataSection.model_validate(other.model_dump(mode="json")) == other


def test_test_problems_read_as_data_says_go_through_a_run(tmp_path, monkeypatch):
    rows = [{"q": f"number {n}", "a": str(n)} for n in range(40)]
    train, test = write_jsonl(tmp_path / "train.jsonl", rows[:30]), write_jsonl(tmp_path / "test.jsonl", rows[30:])
    reading = {"columns": {"prompt": "q", "answer": "a"}, "template": "{prompt} ="}
    data = {"source": train, **reading, "validation_size": 4, "test_size": 10, "test": {"source": test}}
    done = run_quickly(write_quick_run(tmp_path, data=data), monkeypatch)
    assert {sample.prompt for sample in done.result.samples} <= {f"number {n} =" for n in range(30, 40)}


def test_home_is_understood_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = write_quick_run(tmp_path)
    raw = json.loads(config.model_dump_json().replace(str(tmp_path), "~"))
    assert raw["data"]["source"] == "~/data.jsonl"
    again = type(config).model_validate({**raw, "model": {"path": "~/model", "adapter": "~/adapter"}})
    assert again.model.path == str(tmp_path / "model")
    ran = type(config).model_validate(raw)
    assert run_quickly(ran, monkeypatch).folder == tmp_path / "runs" / "quick"
    sft = SftConfig.model_validate({"model": "~/m", "out": "~/o", "data": {"source": "~/d"}})
    assert (sft.model, sft.out, sft.data.source) == (f"{tmp_path}/m", f"{tmp_path}/o", f"{tmp_path}/d")
    models = {name: {"path": f"~/{name}"} for name in ("student", "teacher")}
    distill = DistillConfig.model_validate({**models, "data": {"source": "~/d"}, "run": {"generations": 30}})
    assert (distill.student.path, distill.teacher.path) == (f"{tmp_path}/student", f"{tmp_path}/teacher")
    assert DataSection(source="organisation/~data").source == "organisation/~data"


def write_with_a_long_row(folder: Path, **changes: object):
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(30)]
    rows[17]["prompt"] = "9" * 90
    config = write_quick_run(folder, backend={"name": "fake", "options": {"context": 40}})
    data = {"source": write_jsonl(folder / "data.jsonl", rows), "validation_size": 4, "test_size": 4, **changes}
    return type(config).model_validate({**config.model_dump(), "data": data})


def test_a_prompt_that_is_too_long_is_found_before_the_first_generation(tmp_path, monkeypatch):
    config = write_with_a_long_row(tmp_path)
    told = r"1 of \d+ prompts have more than 32 tokens .*max_tokens 8.*data.jsonl' row 17 has 90: .*too_long: drop"
    with pytest.raises(DataError, match=told):
        plan(config)
    with pytest.raises(DataError, match=told):
        run_quickly(config, monkeypatch)
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


@pytest.mark.slow
def test_too_long_prompts_are_dropped_where_that_is_wanted_and_the_report_says_so(tmp_path, monkeypatch):
    config = write_with_a_long_row(tmp_path, too_long="drop")
    found = plan(config)
    assert sum(found.problems) == 29
    assert "such as " in texts(found.notes, "dropped")[0]
    reporter = Recorder()
    done = run_quickly(config, monkeypatch, reporter=reporter, with_report=True)
    assert any("row 17 has 90" in warning for warning in reporter.warnings)
    page = (done.folder / "report.html").read_text()
    assert "row 17 has 90" in page
    assert json.loads((done.folder / "data.json").read_text())["notes"][-1]["kind"] == "dropped"


def test_too_long_prompts_of_every_part_are_found(tmp_path, monkeypatch):
    good = [{"prompt": f"{n} + 1 =", "answer": "1"} for n in range(30)]
    long = write_jsonl(
        tmp_path / "long.jsonl", [{"prompt": "x" * 60, "answer": "1"}, {"prompt": "y" * 3, "answer": "1"}]
    )
    good = write_jsonl(tmp_path / "good.jsonl", good)
    base = {"source": good, "validation_size": 2, "test_size": 2}
    for part in ({"test": {"source": long}}, {"validation": {"source": long}}):
        config = write_quick_run(tmp_path, backend={"name": "fake", "options": {"context": 40}}, data={**base, **part})
        with pytest.raises(DataError, match=r"1 of 2 prompts .*long.jsonl' row 0 has 60"):
            plan(config)
    probe = {"source": long, "size": 2, "rewards": [f"{tmp_path / 'reward.py'}:variety"]}
    config = write_quick_run(tmp_path, backend={"name": "fake", "options": {"context": 40}}, data=base, probe=probe)
    with pytest.raises(DataError, match=r"1 of 2 prompts .*long.jsonl' row 0 has 60"):
        plan(config)


def test_a_generation_of_more_problems_than_there_are_is_told(tmp_path):
    said = "fitness.prompts is 50: each generation repeats some of the 40 training problems"
    assert texts(plan(write_quick_run(tmp_path, fitness__prompts=50)).notes, "assumed") == [said]
    assert not plan(write_quick_run(tmp_path, fitness__prompts=40)).notes


@pytest.mark.slow
def test_a_dry_run_and_the_report_tell_what_happened_to_the_data(tmp_path, monkeypatch):
    rows = [{"question": f"{n % 30} + 1 =", "solution": str(n % 30 + 1), "context": "x"} for n in range(60)]
    data = {"source": write_jsonl(tmp_path / "q.jsonl", rows), "validation_size": 4, "test_size": 4, "train_size": 12}
    config = write_quick_run(tmp_path, data=data)
    notes = plan(config).notes
    assert [note.kind for note in notes] == ["dropped", "dropped", "cut"]
    page = (run_quickly(config, monkeypatch, with_report=True).folder / "report.html").read_text()
    for note in notes:
        assert note.text.replace("'", "&#39;") in page
    assert "&#39;question&#39; of " in page
