"""Mistakes of the user end in one clear line and exit code 2; a run's mishaps are counted and shown."""

import json
import shutil
from pathlib import Path

import pytest
from runs import esalign, reproducible, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which a good run is possible."""
    folder = tmp_path_factory.mktemp("bad")
    write_run(folder)
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "a"}\n{nonsense\n')
    (folder / "other.jsonl").write_text('{"text": "a"}\n')
    (folder / "few.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    (folder / "bad.py").write_text(
        "def bad(prompts, completions, **columns):\n    return [1.0] * (len(completions) + 1)\n\nnumber = 3\n"
    )
    (folder / "syntax.py").write_text("def broken(:\n")
    broken = folder / "broken_adapter"
    broken.mkdir()
    for file in (folder / "adapter").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    (folder / "twice.yaml").write_text("run: {generations: 3, generations: 4}\n")
    (folder / "braces.yaml").write_text("{prompt: 1}: 2\n")
    (folder / "model.gguf").write_bytes(b"GGUF")
    for name, changes in (("odd_alpha", {"lora_alpha": "two"}), ("odd_pattern", {"rank_pattern": {"(": 2}})):
        shutil.copytree(folder / "adapter", folder / name)
        config = json.loads((folder / name / "adapter_config.json").read_text())
        (folder / name / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


MISTAKES = [
    (["run.generatoins=3"], "did you mean 'generations'"),
    (["optimizer.name=cma"], "did you mean 'cma-es'"),
    (["optimizer.name=nevergrad:PSOO"], "PSO"),
    (["optimizer.options={rate: 1}"], "has no option 'rate'"),
    (["optimizer.population=3"], "population"),
    (["backend.name=torhc"], "did you mean 'torch'"),
    (["backend.options={thread: 1}"], "did you mean 'threads'"),
    (["backend.dtype=float31"], "float31"),
    (["backend.device=cuda:7"], "cuda"),
    (["model.path={folder}/nowhere"], "nowhere"),
    (["model.adapter={folder}/nowhere"], "is neither a folder with"),
    (["model.adapter={folder}/broken_adapter"], "is broken"),
    (["model.adapter={folder}/model"], "adapter_config.json"),
    (["space.fraction=0.1"], "rounds down to 0"),
    (["data.source={folder}/nowhere.jsonl"], "nowhere.jsonl"),
    (["data.source={folder}/empty.jsonl"], "empty.jsonl"),
    (["data.source={folder}/broken.jsonl"], "line 2|broken.jsonl:2"),
    (["data.source={folder}/other.jsonl"], "no column"),
    (["data.source={folder}/few.jsonl"], "1 different problem"),
    (["data.source=reasoning-gym:countdonw"], "did you mean 'countdown'"),
    (["data.source=reasoning-gym:countdown", "data.options={min_number: 3}"], "min_number"),
    (["data.test={source: {folder}/data.jsonl}", "data.test_size=100"], "are in both"),
    (["data.template='{prompt} {nothing}'"], "nothing"),
    (["data.system_prompt=Be brief.", "model.path={folder}/no_template"], "template"),
    (["rewards=[{name: mathh}]"], "did you mean 'math'"),
    (["rewards=[{name: '{folder}/bad.py:none'}]"], "none"),
    (["rewards=[{name: '{folder}/bad.py:number'}]"], "number"),
    (["rewards=[{name: '{folder}/bad.py:bad'}]"], "bad"),
    (["rewards=[{name: '{folder}/syntax.py:broken'}]"], "syntax.py"),
    (["rewards=[{name: '{folder}/missing.py:f'}]"], "missing.py"),
    (["sampling.max_tokens=100000"], "context"),
    (["fitness.name=surogate"], "did you mean 'surrogate'"),
    (["fitness.name=surrogate", "fitness.samples=1"], "at least 2"),
    (["fitness.samples=4"], "greedy decoding"),
    (["fitness={name: surrogate, options: {refresh: 0}}"], "at least 1"),
    (["fitness={name: surrogate, options: {kl_limit: -1}}"], "above 0"),
    (["fitness={name: surrogate, options: {klimit: 1}}"], "kl_limit"),
    (["fitness={name: surrogate, options: {pairs: 0}}"], "at least 1"),
    (["fitness={name: distillation, options: {teacher: {folder}/model, steps: 900}}"], "never end"),
    (["run.tracker=wandb"], "pip install"),
    (["run.name=.."], "expected the name of a folder: letters, digits"),
    (["{folder}/twice.yaml"], "'generations' is given twice"),
    (["{folder}/braces.yaml"], "unhashable key"),
    (["optimizer.sigma=.inf"], "finite"),
    (["optimizer.sigma=1e308"], "less than"),
    (["optimizer.population=1000000000000"], "less than"),
    (["optimizer.name=openai-es", "optimizer.options={learning_rate: fast}"], "valid number"),
    (["backend.options={threads: two}"], "valid integer"),
    (["backend.options={max_rows: 2.5}"], "valid integer"),
    (["sampling.stop=['']"], "at least 1 character"),
    (["model.path={folder}/model.gguf"], "cannot be loaded"),
    (["model.adapter={folder}/odd_alpha"], "lora_alpha 'two'"),
    (["model.adapter={folder}/odd_pattern"], "cannot be read"),
    (["--resume", "run.name=never"], "no run"),
    (["--reusme"], "no option"),
]


@pytest.mark.parametrize(
    ("arguments", "told"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, arguments, told):
    if not (folder / "no_template").exists():
        copy_without_template(folder / "model", folder / "no_template")
    filled = [argument.replace("{folder}", str(folder)) for argument in arguments]
    done = esalign("run", folder / "run.yaml", *filled)
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert any(option in lines[0] for option in told.split("|")), lines[0]
    assert not list((folder / "runs").glob("*/metrics.jsonl"))


def copy_without_template(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".jinja":
            (target / file.name).write_bytes(file.read_bytes())
    file = target / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        ("raise RuntimeError('broken tool')", "error"),
        ("return [float('nan')] * len(completions)", "error"),
        ("import time; time.sleep(60)", "timeout"),
    ],
)
def test_a_reward_that_fails_is_counted_and_shown_and_the_run_goes_on(tmp_path, body, counted):
    lines = f"    if '1 +' in prompts[0]:\n        {body}\n    return [len(set(text)) / 40 for text in completions]\n"
    (tmp_path / "shaky.py").write_text(f"def shaky(prompts, completions, **columns):\n{lines}")
    file = write_run(
        tmp_path,
        rewards=[{"name": f"{tmp_path / 'shaky.py'}:shaky"}],
        scoring={"workers": 1, "timeout": 0.3},
        fitness={"prompts": 24},
        optimizer={"name": "random-search", "population": 2, "sigma": 0.5},
        data={"source": str(tmp_path / "data.jsonl"), "validation_size": 2, "test_size": 2},
        run={"name": "small", "dir": str(tmp_path / "runs"), "generations": 1, "kl_prompts": 0},
    )
    done = esalign("run", file)
    assert done.returncode == 0, done.stderr
    row = reproducible(tmp_path / "runs" / "small")[-1]
    assert row[f"errors/shaky/{counted}"] > 0
    assert "shaky" in done.stdout


def test_a_run_that_never_began_is_not_told_to_resume(folder):
    done = esalign("run", folder / "run.yaml", f"run.dir={folder / 'data.jsonl'}")  # a file is in the way
    assert done.returncode == 2
    assert done.stderr.startswith("error: Not a directory")
    assert done.stderr.count("\n") == 1
    assert "resume" not in done.stderr


def test_a_disk_without_room_is_one_line_and_the_run_resumes_where_it_was(tmp_path):
    file = write_run(tmp_path, run__generations=2)
    assert esalign("run", file).returncode == 0
    run = tmp_path / "runs" / "small"
    kept = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    room = min(len(content) for content in kept.values()) // 2  # enough for the lines, not for a checkpoint
    done = esalign("run", file, "--resume", "run.generations=4", room=room)
    assert done.returncode == 2
    assert done.stderr.startswith("error: File too large")
    assert "the run goes on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == kept
    assert esalign("run", file, "--resume", "run.generations=4").returncode == 0
    assert [row["generation"] for row in reproducible(run)] == [0, 1, 2, 3, 4]
