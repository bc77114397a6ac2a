"""Problems: sources and columns."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from esalign.data import Source, gym, load_dataset, load_examples, problem_key
from esalign.errors import DataError

ROWS = [{"question": f"What is {i} + {i}?", "solution": str(2 * i), "level": i % 3} for i in range(60)]
GSM8K = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"
COUNTDOWN = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 9, "min_target": 1, "max_target": 30}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def write_csv(path, rows):
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_parquet(path, rows):
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_saved(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


def write_saved_splits(path, rows):
    data = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": data, "test": data.select(range(5))}).save_to_disk(str(path))
    return str(path)


WRITERS = {
    "data.jsonl": write_jsonl,
    "data.json": write_json,
    "lines.json": write_jsonl,
    "data.csv": write_csv,
    "data.parquet": write_parquet,
    "saved": write_saved,
    "saved_splits": write_saved_splits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_source_gives_the_same_problems(name, tmp_path):
    source = WRITERS[name](tmp_path / name, ROWS)
    data = load_dataset(Source(source=source))
    assert [example.prompt for example in data.examples] == [row["question"] for row in ROWS]
    assert [example.columns["answer"] for example in data.examples] == [row["solution"] for row in ROWS]
    assert [int(example.columns["level"]) for example in data.examples] == [row["level"] for row in ROWS]
    assert data.aliases == {"prompt": "question", "answer": "solution"}


def test_a_folder_of_data_files_is_read_as_a_hugging_face_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "folder" / "test.jsonl", ROWS[:7])
    assert len(load_examples(str(tmp_path / "folder"))) == 60
    assert len(load_examples(str(tmp_path / "folder"), split="test")) == 7


def test_saved_splits_are_chosen_by_name(tmp_path):
    source = write_saved_splits(tmp_path / "saved", ROWS)
    assert len(load_examples(source, split="test")) == 5
    with pytest.raises(DataError, match=r"no split 'tests', did you mean 'test'\?; splits: train, test"):
        load_examples(source, split="tests")


def test_columns_keep_their_own_names_beside_the_role(tmp_path):
    (example, *_) = load_examples(write_jsonl(tmp_path / "a.jsonl", ROWS))
    assert example.columns["solution"] == example.columns["answer"] == "0"
    assert example.columns["question"] == example.prompt


def test_columns_can_be_named(tmp_path):
    rows = [{"prompt": "no", "task": "yes", "gold": 1, "note": "n"}]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    data = load_dataset(Source(source=source, columns={"prompt": "task", "answer": "gold", "hint": "note"}))
    assert data.examples[0].prompt == "yes"
    assert data.examples[0].columns["answer"] == 1
    assert data.examples[0].columns["hint"] == "n"
    assert data.aliases == {}


def test_verl_rows_give_their_ground_truth(tmp_path):
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": "1 + 1?"}],
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"index": 0},
        }
    ]
    data = load_dataset(Source(source=write_parquet(tmp_path / "a.parquet", rows)))
    assert data.examples[0].prompt == ({"role": "user", "content": "1 + 1?"},)
    assert data.examples[0].columns["answer"] == "2"
    assert data.examples[0].columns["extra_info"] == {"index": 0}
    assert data.aliases == {"answer": "reward_model.ground_truth"}


def test_template_surrounds_the_prompt_and_keeps_doubled_braces(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    template = "{question} (level {level})\nPut it in \\boxed{{}}."
    assert load_examples(source, template=template)[4].prompt == "What is 4 + 4? (level 1)\nPut it in \\boxed{}."
    assert load_examples(source, template="Q: {prompt}")[0].prompt == "Q: What is 0 + 0?"


def test_chat_makes_messages_of_text_alone(tmp_path):
    rows = [{"prompt": "1 + 1"}, {"prompt": [{"role": "user", "content": "2 + 2"}]}]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_examples(str(file), chat=True)
    assert first.prompt == ({"role": "user", "content": "1 + 1"},)
    assert second.prompt == ({"role": "user", "content": "2 + 2"},)


def test_system_prompt_makes_chat_messages(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert load_examples(source, system_prompt="Be brief.")[0].prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 0 + 0?"},
    )


def test_size_draws_a_seeded_sample_without_repeats(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first, again, other = (load_examples(source, size=20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({example.prompt for example in first}) == 20


@pytest.mark.slow
def test_gym_problems_depend_on_size_and_seed_alone_and_can_be_pickled():
    first = load_examples("reasoning-gym:countdown", size=5, seed=3, options=COUNTDOWN)
    assert first == load_examples("reasoning-gym:countdown", size=9, seed=3, options=COUNTDOWN)[:5]
    assert first != load_examples("reasoning-gym:countdown", size=5, seed=11, options=COUNTDOWN)
    assert pickle.loads(pickle.dumps(first)) == first
    assert set(first[0].columns) == {"question", "answer", "metadata"}


def test_gym_problems_of_neighbouring_seeds_have_little_in_common():
    options = {**COUNTDOWN, "max_value": 50, "max_target": 500}
    first, second = (
        {
            problem_key(example)
            for example in load_examples("reasoning-gym:countdown", size=60, seed=seed, options=options)
        }
        for seed in (0, 1)
    )
    assert len(first & second) < 3


@pytest.mark.slow
def test_gym_problems_are_the_same_when_processes_generate_them(monkeypatch):
    here = load_examples("reasoning-gym:countdown", size=80, seed=3, options=COUNTDOWN)
    monkeypatch.setattr(gym, "WORTH_PROCESSES", 0.0)
    assert load_examples("reasoning-gym:countdown", size=80, seed=3, options=COUNTDOWN) == here


BAD_ROWS = {
    "empty file": ([], "holds no rows"),
    "blank prompt": ([{"prompt": "a"}, {"prompt": "  "}], "row 1: the prompt is empty"),
    "no prompt column": ([{"text": "a"}], "no column for the prompt: looked for prompt, question"),
    "number as prompt": ([{"prompt": 3}], "the prompt is int, expected text or a list of chat messages"),
    "message without content": ([{"prompt": [{"role": "user"}]}], "expected text under 'content', got None"),
    "message that is text": ([{"prompt": ["hello"]}], "expected a mapping with role and content, got str"),
    "no messages": ([{"prompt": []}], "the prompt is an empty list"),
    "answered messages": ([{"prompt": [{"role": "assistant", "content": "4"}]}], "the last message is the assistant's"),
    "later row without answer": ([{"prompt": "a", "answer": 1}, {"prompt": "b"}], "row 1: column 'answer' is missing"),
    "reserved column": ([{"prompt": "a", "completions": 1}], "column 'completions', an argument of every reward"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_give_one_clear_line(case, tmp_path):
    rows, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message) as caught:
        load_examples(write_jsonl(tmp_path / "a.jsonl", rows))
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "broken.jsonl": ('{"prompt": "a"}\n{"prompt": \n', r"broken.jsonl:2: not valid JSON: Expecting value at column 11"),
    "list.jsonl": ("[1]\n", r"list.jsonl:1: expected an object with columns, got list"),
    "broken.json": ('[{"prompt": "a"},\n}]', r"broken.json:2: not valid JSON"),
    "number.json": ("3", r"number.json: expected a list of objects, got int"),
    "ragged.csv": ("prompt,answer\na,1\nb\n", r"ragged.csv:3: expected 2 fields"),
    "quote.csv": ('prompt,answer\n"a"x,1\n', r"quote.csv:2: not valid CSV"),
    "text.parquet": ("no parquet", r"text.parquet' is not a parquet file"),
    "latin.jsonl": (b'{"prompt": "\xe9"}\n', r"latin.jsonl' is not UTF-8 text"),
    "notes.txt": ("hello", r"cannot tell what data source .*, expected a file that ends in one of .csv"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_clear_line(name, tmp_path):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_examples(str(tmp_path / name))
    assert "\n" not in str(caught.value)


BAD_ARGUMENTS = {
    "missing column": (
        {"columns": {"prompt": "questoin"}},
        "no column 'questoin' for 'prompt', did you mean 'question'",
    ),
    "template's column": ({"template": "{questoin}"}, r"names \{questoin\}, did you mean 'question'"),
    "template's braces": ({"template": "{prompt} \\boxed{}"}, r"write \{\{ and \}\} for braces"),
    "template's open brace": ({"template": "{prompt"}, "data.template cannot be read"),
    "split of a file": ({"split": "train"}, "is a file, so it has no split"),
    "config of a file": ({"config": "main"}, "is a file, so it has no config"),
    "too large": ({"size": 61}, "has 60 rows, fewer than size 61: lower it"),
    "none": ({"size": 0}, "is 0, expected at least 1"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_give_one_clear_line(case, tmp_path):
    arguments, message = BAD_ARGUMENTS[case]
    with pytest.raises(DataError, match=message):
        load_examples(write_jsonl(tmp_path / "a.jsonl", ROWS), **arguments)


def test_a_missing_file_names_its_neighbour(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no data file .*trian.jsonl', did you mean 'train.jsonl'"):
        load_examples(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="no data folder or file"):
        load_examples(str(tmp_path / "nowhere"))


BAD_TASKS = {
    "unknown task": ("reasoning-gym:countdow", {}, "no task 'countdow', did you mean 'countdown'"),
    "unknown option": (
        "reasoning-gym:countdown",
        {"min_number": 3},
        "no option 'min_number', did you mean 'min_numbers'",
    ),
    "refused option": ("reasoning-gym:countdown", {"min_numbers": 1}, "min_numbers must be greater than 1"),
    "seed as option": ("reasoning-gym:countdown", {"seed": 1}, "the sizes and the seed of the run decide it"),
    "impossible": ("reasoning-gym:countdown", {"min_target": 10**9, "max_target": 10**9}, "cannot generate problems"),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_bad_tasks_give_one_clear_line(case):
    source, options, message = BAD_TASKS[case]
    with pytest.raises(DataError, match=message):
        load_examples(source, options=options, size=3)


def test_real_problems_load():
    examples = load_examples(str(GSM8K))
    assert len(examples) == 200
    assert all("####" in example.columns["answer"] for example in examples)
    assert np.median([len(example.prompt) for example in examples]) > 100
