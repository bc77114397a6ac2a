"""The paper's rows in examples/essa run from beginning to end, as docs/paper.md starts them.

Models and data are stand-ins: a tiny random model of the same architecture, and rows of our own with the columns,
configurations and splits that the data sets have on the hub, in as many rows.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from quick_runs import run_quickly

from esalign.cli import split_arguments
from esalign.commands.build import load_splits, resolve
from esalign.commands.sft import warm_start
from esalign.config.reading import load_config, merge
from esalign.config.run import RunConfig
from esalign.config.sections import Section
from esalign.config.sft import SftConfig
from esalign.space.adapter import read_adapter

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text()
COMMANDS = re.findall(r"^esalign (sft|run) (examples/essa/.*)$", PAGE, re.MULTILINE)
RUNS = [arguments for command, arguments in COMMANDS if command == "run"]
SIZES = {  # as docs/paper.md has them: SFT, search, validation, test
    "gsm8k": (1495, 5722, 256, 1319),
    "math": (3600, 7900 - 3, 500, 500),  # three of our problems are in MATH-500, too
    "ifeval": (1700, 3158, 256, 541),
}
ARCHITECTURES = {"Qwen/Qwen2.5": "qwen2", "meta-llama/Llama-3.1": "llama"}


@dataclass(frozen=True)
class Lab:
    """Stand-ins: folders of data sets by their ids, and of models by their architecture."""

    data: dict[str, str]
    models: dict[str, str]

    def model(self, name: str) -> str:
        return self.models[next(kind for start, kind in ARCHITECTURES.items() if name.startswith(start))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    models = {name: str(make_model(folder / name, name)) for name in ("qwen2", "llama")}
    return Lab({name: str(write(folder / name.replace("/", "-"))) for name, write in DATA.items()}, models)


def write_set(folder: Path, splits: dict[str, list[dict[str, Any]]], *, config: str = "default") -> Path:
    """Write a data set as the hub has it: a card that names configuration and splits, and their files."""
    (folder / config).mkdir(parents=True)
    files = []
    for name, rows in splits.items():
        (folder / config / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(f"{{split: {name}, path: {config}/{name}.jsonl}}")
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files: [{', '.join(files)}]\n---\n"
    (folder / "README.md").write_text(card)
    return folder


def gsm8k(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"{n} plus 3?", "answer": f"It is {n} + 3 = <<{n}+3={n + 3}>>{n + 3}.\n#### {n + 3}"}
        for n in range(start, start + count)
    ]


def maths(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "problem": f"What is ${n} + 3$?",
            "solution": f"It is $\\boxed{{{n + 3}}}$.",
            "answer": str(n + 3),
            "subject": "Algebra",
            "level": n % 5 + 1,
            "unique_id": f"train/algebra/{n}.json",
        }
        for n in range(start, start + count)
    ]


def instructions(start: int, count: int, *, like: bool) -> list[dict[str, Any]]:
    """IFEval's rows; those like them have a response, and arguments as text."""
    rows = []
    for n in range(start, start + count):
        kwargs = [{}, {"num_words": 40 + n % 9, "relation": "at least"}]
        row = {
            "key": n,
            "prompt": f"Say {n} without commas.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": json.dumps(kwargs) if like else kwargs,
        }
        rows.append({**row, "response": f"{n} it is", "prompt_level_strict_acc": True} if like else row)
    return rows


DATA = {
    "openai/gsm8k": lambda folder: write_set(
        folder, {"train": gsm8k(0, 7473), "test": gsm8k(9000, 1319)}, config="main"
    ),
    "nlile/hendrycks-MATH-benchmark": lambda folder: write_set(folder, {"train": maths(0, 12000)}),
    "HuggingFaceH4/MATH-500": lambda folder: write_set(folder, {"test": maths(20000, 497) + maths(5000, 3)}),
    "argilla/ifeval-like-data": lambda folder: write_set(
        folder, {"train": instructions(0, 6000, like=True)}, config="filtered"
    ),
    "google/IFEval": lambda folder: write_set(folder, {"train": instructions(9000, 541, like=False)}),
}


def read(arguments: str, schema: type[Section]) -> Any:
    files, overrides = split_arguments(shlex.split(arguments))
    return load_config([ROOT / file for file in files], overrides, schema=schema)


def task_of(arguments: str) -> str:
    return re.match(r"examples/essa/(?:sft_)?(\w+?)\.yaml", arguments)[1]


def with_stand_ins(config: Any, lab: Lab, **changes: Any) -> dict[str, Any]:
    """Return a configuration whose data are the lab's."""
    raw = config.model_dump(mode="json")
    raw["data"]["source"] = lab.data[raw["data"]["source"]]
    if raw["data"].get("test"):
        raw["data"]["test"]["source"] = lab.data[raw["data"]["test"]["source"]]
    return merge(raw, changes)


def warm_starts() -> dict[str, str]:
    """Return the arguments of `esalign sft` by the adapter that it leaves."""
    return {read(arguments, SftConfig).out: arguments for command, arguments in COMMANDS if command == "sft"}


def test_the_page_starts_every_recipe():
    named = {file for _, arguments in COMMANDS for file in split_arguments(shlex.split(arguments))[0]}
    assert named == {str(file.relative_to(ROOT)) for file in (ROOT / "examples" / "essa").glob("*.yaml")}
    assert len(RUNS) == len(set(RUNS)) == 9


@pytest.mark.parametrize("arguments", RUNS)
def test_a_recipe_has_the_papers_settings(arguments):
    config = resolve(read(arguments, RunConfig))
    settings = {
        "gsm8k": ("Qwen/Qwen2.5-Math-7B", 96, 100),
        "math": ("Qwen/Qwen2.5-Math-7B", 96, 100),
        "math_32b": ("Qwen/Qwen2.5-32B", 48, 256),
        "ifeval": ("meta-llama/Llama-3.1-8B", 24, 500),
    }
    name = "math_32b" if "math_32b" in arguments else task_of(arguments)
    assert (config.model.path, config.optimizer.population, config.fitness.prompts) == settings[name]
    if config.model.adapter is None:
        assert (config.space.name, config.space.options["rank"]) == ("base-svd", 8)
        return
    sft = read(warm_starts()[config.model.adapter], SftConfig)
    assert sft.model == config.model.path
    assert sft.data.template == config.data.template
    assert (sft.rank, config.space.options) == ((32, {"fraction": 0.1}) if "best" in arguments else (8, {}))
    assert sft.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RUNS)
def test_a_recipe_runs_from_its_data_to_its_result(arguments, lab, tmp_path, monkeypatch):
    config = read(arguments, RunConfig)
    whole = RunConfig.model_validate(with_stand_ins(config, lab))
    splits = load_splits(whole)
    found = tuple(len(data.examples) for data in (splits.train, splits.validation, splits.test))
    assert found == SIZES[task_of(arguments)][1:]
    model = lab.model(config.model.path)
    adapter = None
    if config.model.adapter is not None:
        adapter = _warm_start(warm_starts()[config.model.adapter], lab, tmp_path / "adapter")
    raw = with_stand_ins(
        config,
        lab,
        model={"path": model, "adapter": adapter},
        data={"train_size": 8, "validation_size": 4, "test_size": 4},
        scoring={"workers": 0},
        sampling={"max_tokens": 8},
        fitness={"prompts": 4},
        optimizer={"population": 4},
        run={"dir": str(tmp_path / "runs"), "generations": 1, "evaluate_every": 1, "kl_prompts": 0},
    )
    raw["backend"] = {"name": "torch", "dtype": "float32", "device": "cpu", "self_test": 0}
    done = run_quickly(RunConfig.model_validate(raw), monkeypatch)
    assert 0.0 <= done.result.comparisons["test/greedy"].start.mean <= 1.0
    saved = read_adapter(done.saved)
    assert saved.config["r"] == (32 if "best" in arguments else 8)
    assert {module.name.rpartition(".")[2] for module in saved.modules} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def _warm_start(arguments: str, lab: Lab, out: Path) -> str:
    config = read(arguments, SftConfig)
    few = {"max_steps": 1, "batch_size": 4, "gradient_accumulation": 1, "dtype": "float32", "device": "cpu"}
    raw = with_stand_ins(config, lab, model=lab.model(config.model), out=str(out), **few)
    summary = warm_start(SftConfig.model_validate(raw))
    assert summary.examples == SIZES[task_of(arguments)][0]
    return str(out)
