"""A run goes on only with what it began with, and with whatever else may change."""

import json
import shutil
from pathlib import Path

import pytest
from quick_runs import Recorder, run_quickly, write_quick_run
from runs import reproducible

from esalign.errors import CheckpointError
from esalign.run import inputs

LARGE = inputs.WHOLE + 3 * inputs.STRIDE


def write_inputs(folder: Path, **changes):
    """Write a run that has everything that can change under it: a model, a probe, a reward in two files, an option."""
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    (model / "README.md").write_text("a model")
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(LARGE)
    (folder / "probe.jsonl").write_text("".join(json.dumps({"prompt": f"probe {n}"}) + "\n" for n in range(8)))
    (folder / "test.jsonl").write_text("".join(json.dumps({"prompt": f"test {n}"}) + "\n" for n in range(8)))
    (folder / "tests.json").write_text("[]")
    config = write_quick_run(
        folder,
        model__path=str(model),
        data__test={"source": str(folder / "test.jsonl")},
        data__test_size=8,
        probe={
            "source": str(folder / "probe.jsonl"),
            "size": 8,
            "rewards": [{"name": f"{folder / 'reward.py'}:counted", "options": {"tests": str(folder / "tests.json")}}],
        },
        run__generations=3,
        **changes,
    )
    (folder / f"helper_{folder.name}.py").write_text("WIDTH = 12\n")
    (folder / "reward.py").write_text(
        f"from helper_{folder.name} import WIDTH\n\n\n"
        "def variety(prompts, completions, **columns):\n"
        "    return [len(set(text)) / WIDTH for text in completions]\n\n\n"
        "def counted(prompts, completions, tests=''):\n    return [float(len(text)) for text in completions]\n"
    )
    return config


def write_byte(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"x")


def change_line(file: Path, number: int, old: str, new: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    file.write_text("".join(lines))


def reverse(file: Path) -> None:
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


def append(file: Path, text: str) -> None:
    with file.open("a") as stream:
        stream.write(text)


CHANGES = {
    "a prompt": (lambda f: change_line(f / "data.jsonl", 3, "0 + 3", "0 + 33"), "the .* problems"),
    "an answer": (
        lambda f: [change_line(f / "data.jsonl", n, '"answer": "', '"answer": "1') for n in range(64)],
        "the t",
    ),
    "a column more": (
        lambda f: [change_line(f / "data.jsonl", n, "}", ', "level": 1}') for n in range(64)],
        "the training problems, the validation problems changed",
    ),
    "the type of the answers": (
        lambda f: [change_line(f / "data.jsonl", n, '"answer": "', '"answer": 1, "other": "') for n in range(64)],
        "the training problems, the validation problems changed",
    ),
    "the order of the rows": (lambda f: reverse(f / "data.jsonl"), "the training problems, the validation problems ch"),
    "a row more": (lambda f: append(f / "data.jsonl", '{"prompt": "new", "answer": "1"}\n'), "the training problems"),
    "the test's own file": (lambda f: change_line(f / "test.jsonl", 3, "test", "other"), "the test problems ch"),
    "the order of the probe": (lambda f: reverse(f / "probe.jsonl"), "the probe problems changed since"),
    "the reward's file": (lambda f: append(f / "reward.py", "# new\n"), "the code of reward '.*reward.py:variety'"),
    "what the reward imports": (lambda f: append(f / f"helper_{f.name}.py", "WIDTH = 13\n"), "the code of reward"),
    "a file that an option names": (lambda f: (f / "tests.json").write_text("[1]"), "options.tests '.*tests.json'"),
    "the first weight": (lambda f: write_byte(f / "model" / "model.safetensors", 0), "model.path '.*model' changed"),
    "the last weight": (lambda f: write_byte(f / "model" / "model.safetensors", LARGE - 1), "model.path '"),
    "weights in the middle": (
        lambda f: write_byte(f / "model" / "model.safetensors", 5 * inputs.STRIDE + inputs.SAMPLE - 1),
        "model.path '",
    ),
    "the number of weights": (lambda f: append(f / "model" / "model.safetensors", "x"), "model.path '"),
    "the tokenizer": (lambda f: (f / "model" / "tokenizer.json").write_text("[]"), "model.path '"),
    "a file of the model more": (lambda f: (f / "model" / "chat_template.jinja").write_text("x"), "model.path '"),
    "the adapter's scaling": (
        lambda f: change_line(f / "adapter" / "adapter_config.json", 2, '"lora_alpha": 2', '"lora_alpha": 4'),
        "model.adapter '.*adapter' changed",
    ),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped after its start."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        run_quickly(write_inputs(folder), patch, reporter=Recorder(fail_after=2))
    return folder


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_a_run_does_not_go_on_with_other_inputs_than_it_began_with(begun, monkeypatch, change, named):
    config = write_inputs(begun)
    change(begun)
    before = {file.name: file.read_bytes() for file in config_files(begun)}
    with pytest.raises(CheckpointError, match=f"^cannot resume: .*{named}") as error:
        run_quickly(config, monkeypatch, resume=True)
    assert "\n" not in str(error.value)
    assert {file.name: file.read_bytes() for file in config_files(begun)} == before


def config_files(folder: Path) -> list[Path]:
    return [file for file in (folder / "runs" / "quick").iterdir() if file.is_file()]


def test_a_run_goes_on_when_its_inputs_are_as_they_were(tmp_path, monkeypatch):
    config = write_inputs(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_quickly(config, monkeypatch, reporter=Recorder(fail_after=2))
    write_inputs(tmp_path)  # other times of the files
    (tmp_path / "model" / "README.md").write_text("another text")
    reporter = Recorder()
    resumed = run_quickly(config, monkeypatch, resume=True, reporter=reporter)
    assert [row["generation"] for row in reproducible(resumed.folder)] == list(range(4))
    assert not reporter.warnings


def test_the_inputs_of_a_run_are_in_its_folder(begun):
    write_inputs(begun)
    written = json.loads((begun / "runs" / "quick" / "inputs.json").read_text())
    assert all(len(value) == 64 for value in written.values())
    assert sum("problems" in part for part in written) == 4
    assert inputs.hash_inputs(write_inputs(begun), {}).items() <= written.items()


@pytest.mark.parametrize("content", [None, "", "[]", '{"the training pro'])
def test_a_run_that_did_not_write_its_inputs_down_goes_on_with_a_warning(tmp_path, monkeypatch, content):
    config = write_quick_run(tmp_path, run__generations=2)
    with pytest.raises(KeyboardInterrupt):
        run_quickly(config, monkeypatch, reporter=Recorder(fail_after=2))
    file = tmp_path / "runs" / "quick" / "inputs.json"
    file.unlink() if content is None else file.write_text(content)
    reporter = Recorder()
    run_quickly(config, monkeypatch, resume=True, reporter=reporter)
    assert any("did not write down what it began with" in warning for warning in reporter.warnings)


@pytest.mark.parametrize("name", ["quick", "quick-2"])
def test_a_renamed_run_goes_on_under_its_new_name(tmp_path, monkeypatch, name):
    whole = run_quickly(write_quick_run(tmp_path / "whole", run__generations=3), monkeypatch)
    for _ in range(2 if name == "quick-2" else 1):
        with pytest.raises(KeyboardInterrupt):
            run_quickly(
                write_quick_run(tmp_path / "cut", run__generations=3), monkeypatch, reporter=Recorder(fail_after=3)
            )
    (tmp_path / "cut" / "runs" / name).rename(tmp_path / "cut" / "runs" / "renamed")
    config = write_quick_run(tmp_path / "cut", run__name="renamed", run__generations=3)
    resumed = run_quickly(config, monkeypatch, resume=True)
    assert resumed.folder.name == "renamed"
    assert reproducible(resumed.folder) == reproducible(whole.folder)
