"""A run goes on only with what it began with, and with whatever else may change."""

import json
import shutil
import tempfile
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from quick_runs import Recorder, run_quickly, write_quick_run
from runs import reproducible

from esalign.config.distill import DistillConfig
from esalign.errors import CheckpointError
from esalign.run import inputs
from esalign.run.folder import choose_folder
from esalign.types import Example

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
        lambda f: change_line(f / "adapter" / "adapter_config.json", 3, '"lora_alpha": 2', '"lora_alpha": 4'),
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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fitness__options": {"sampled": 0.5}}, "fitness.options.sampled was not set and is now 0.5;"),
        ({"space": {"tie": 2}}, "space.tie was None and is now 2;"),
        ({"data__validation": {"source": "{folder}/probe.jsonl"}}, "data.validation was None and is now set;"),
        ({"probe": None}, "probe was set and is now None;"),
        ({"optimizer__population": 8}, "optimizer.population was 6 and is now 8;"),
    ],
)
def test_a_key_that_came_or_went_is_told_as_such(begun, monkeypatch, changes, told):
    config = write_inputs(begun)
    raw = config.model_dump(mode="json")
    for key, value in json.loads(json.dumps(changes).replace("{folder}", str(begun))).items():
        section, _, name = key.partition("__")
        raw[section] = {**raw[section], name: value} if name else value
    config = type(config).model_validate(raw)
    with pytest.raises(CheckpointError, match=f"^cannot resume: {told}"):
        run_quickly(config, monkeypatch, resume=True)


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


@pytest.mark.parametrize(
    ("there", "new", "resumed"),
    [
        ([], "quick", None),
        (["quick"], "quick-2", "quick"),
        (["quick", "quick-2"], "quick-3", "quick-2"),
        (["quick-2"], "quick-3", "quick-2"),  # the first was renamed
        (["quick", "quick-3"], "quick-2", "quick"),  # another run that is called so
        (["quick", "quick-2024"], "quick-2", "quick"),
    ],
)
def test_a_new_run_and_a_resumed_one_find_their_folders(tmp_path, there, new, resumed):
    config = write_quick_run(tmp_path)
    for name in there:
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert choose_folder(config, resume=False).name == new
    if resumed:
        assert choose_folder(config, resume=True).name == resumed
    else:
        with pytest.raises(CheckpointError, match="no run"):
            choose_folder(config, resume=True)


def hash_of(**columns):
    return next(iter(inputs.hash_inputs(write_quick_run(FOLDER), {"training": [Example("p", columns)]}).values()))


FOLDER = Path(tempfile.mkdtemp())


class Opaque:
    pass


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),  # columns have names, no order
        ({"a": {"x": 1, "y": {2, 3}}}, {"a": {"y": {3, 2}, "x": 1}}, True),
        ({"a": np.arange(3)}, {"a": [0, 1, 2]}, True),
        ({"a": Opaque()}, {"a": Opaque()}, True),
        ({"a": {(0, 1): "x", 3: "y"}}, {"a": {3: "y", (0, 1): "x"}}, True),
        ({"a": float("nan")}, {"a": float("nan")}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": None}, {}, False),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, False),
        ({"a": np.arange(3)}, {"a": np.arange(4)}, False),
        ({"a": Fraction(1, 3)}, {"a": Fraction(1, 2)}, False),
        ({"a": datetime(2020, 1, 1)}, {"a": datetime(2020, 1, 2)}, False),  # noqa: DTZ001  (as parquet files hold them)
        ({"a": b"x"}, {"a": b"y"}, False),
        ({"a": "\ud800"}, {"a": "\ud801"}, False),
    ],
)
def test_problems_have_equal_hashes_when_they_are_equal(one, other, equal):
    assert (hash_of(**one) == hash_of(**other)) == equal


def test_a_distillation_is_held_to_its_student_and_its_teacher(tmp_path):
    for name in ("student", "teacher", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(name)
    config = DistillConfig.model_validate(
        {
            "student": {"path": str(tmp_path / "student"), "adapter": str(tmp_path / "adapter")},
            "teacher": {"path": str(tmp_path / "teacher")},
            "data": {"source": "any.jsonl"},
        }
    )
    before = inputs.hash_inputs(config, {})
    assert [part.split()[0] for part in before] == ["student.path", "student.adapter", "teacher.path"]
    for name in ("student", "teacher", "adapter"):
        (tmp_path / name / "model.safetensors").write_text("another")
    now = inputs.hash_inputs(config, {})
    assert now.keys() == before.keys()
    assert not set(now.values()) & set(before.values())


def test_the_code_of_a_reward_is_found_however_it_is_named(tmp_path, monkeypatch):
    package = tmp_path / "package_of_rewards"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "judging.py").write_text("from . import helping\nfrom math_verify import parse\n\ndef judge(**_): ...\n")
    (package / "helping.py").write_text("")
    (tmp_path / "loose" / "folder").mkdir(parents=True)
    (tmp_path / "loose" / "folder" / "judging.py").write_text("from loose import other\n\ndef judge(**_): ...\n")
    (tmp_path / "loose" / "other.py").write_text("import loose.folder\nfrom loose.third import *\n")
    (tmp_path / "loose" / "third.py").write_text("")
    (tmp_path / "script.py").write_text("def judge(**_):\n    from loose import third\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, files in (
        ("package_of_rewards.judging:judge", {"__init__.py", "judging.py", "helping.py"}),
        ("loose.folder.judging:judge", {"judging.py", "other.py", "third.py"}),
        (f"{tmp_path / 'script.py'}:judge", {"script.py", "third.py"}),
    ):
        assert {file.name for file in inputs.find_code(name)} == files, name
    installed = {file.name for file in inputs.find_code("math")}
    assert {"maths.py", "match.py"} <= installed
    assert {file.parent.name for file in inputs.find_code("math_verify:verify")} == {"math_verify"}
