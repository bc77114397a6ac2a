"""Values of data files keep their types, in folders, on the hub, and in files that options name."""

import gzip
import json

import pytest
from test_data import write_csv, write_jsonl, write_parquet

from esalign.data import load_examples
from esalign.errors import DataError

MIXED = [{"prompt": f"{n}?", "answer": value} for n, value in enumerate(["007", 7, "3e2", 2.5, "1_0", True, None])]


def test_a_folder_of_jsonl_keeps_the_types_of_its_values(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", MIXED)
    write_jsonl(folder / "test.jsonl", MIXED[:2])
    alone = load_examples(str(folder / "train.jsonl"))
    held = load_examples(str(folder))
    assert [type(example.columns["answer"]) for example in held] == [str, int, str, float, str, bool, type(None)]
    assert held == alone
    assert load_examples(str(folder), split="test") == alone[:2]
    assert load_examples(str(folder), split="train[1:3]+test[:1]") == [*alone[1:3], alone[0]]
    with pytest.raises(DataError, match="no split 'tset', did you mean 'test'"):
        load_examples(str(folder), split="tset")


def test_a_folder_of_csv_keeps_leading_zeros(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_csv(folder / "data.csv", [{"prompt": "a", "answer": "007"}, {"prompt": "b", "answer": "1"}])
    assert [example.columns["answer"] for example in load_examples(str(folder))] == ["007", "1"]


def test_a_folder_with_several_files_of_a_split_reads_them_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    for part in range(2):
        write_parquet(folder / f"train-0000{part}-of-00002.parquet", [{"prompt": f"{part}", "answer": part}])
    assert [example.columns["answer"] for example in load_examples(str(tmp_path / "folder"))] == [0, 1]


ANSWERS = [row["answer"] for row in MIXED]


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("{folder}", {"data_files": "a.jsonl"}),
        ("{folder}", {"data_files": {"train": ["a.jsonl"]}, "data_dir": None}),
        ("{folder}", {"data_dir": "."}),
        ("json", {"data_files": "{folder}/a.jsonl"}),
        ("json", {"data_files": "{folder}/../packed.jsonl.gz"}),
    ],
)
def test_files_that_options_name_keep_the_types_of_their_values(tmp_path, monkeypatch, source, options):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", MIXED)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    filled = json.loads(json.dumps(options).replace("{folder}", str(folder)))
    held = load_examples(source.format(folder=folder), options={**filled, "cache_dir": str(tmp_path / "cache")})
    assert [example.columns["answer"] for example in held] == ANSWERS


def test_types_that_an_author_declares_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", MIXED[:2])
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: prompt, dtype: string}\n  - {name: answer, dtype: string}\n---\n"
    )
    held = load_examples(str(folder), options={"cache_dir": str(tmp_path / "cache")})
    assert [example.columns["answer"] for example in held] == ["007", "7"]


@pytest.mark.parametrize("named", [True, False], ids=["branch", "commit alone"])
def test_a_data_set_in_the_cache_of_the_hub_is_read_from_its_files_where_the_hub_cannot_be_asked(
    tmp_path, monkeypatch, named
):
    import datasets.config
    from huggingface_hub import constants

    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "datasets--some--mixed", "a" * 40
    snapshot, blob = folder / "snapshots" / commit, folder / "blobs" / "b1"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    (snapshot / "train.jsonl").symlink_to(write_jsonl(blob, MIXED))
    (folder / "refs").mkdir()
    if named:
        (folder / "refs" / "main").write_text(commit)
    options = {"cache_dir": str(tmp_path / "cache")}
    for more in ({}, {"revision": commit}, {"data_files": "train.jsonl"}):
        held = load_examples("some/mixed", options=options | more)
        assert [example.columns["answer"] for example in held] == ANSWERS
    with pytest.raises(DataError, match="cannot load data set 'some/mixed'"):
        load_examples("some/mixed", options=options | {"revision": "b" * 40})
