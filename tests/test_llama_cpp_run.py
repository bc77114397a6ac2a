"""A run on llama.cpp, from the command line: it survives a kill, adds no noise, and refuses mistakes in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import convert_model, lora, quantize_model
from llama_cpp_lab import pretend_smollm3
from models import make_tiny
from runs import esalign, kill_once_and_resume, write_run

from esalign.space.adapter import read_adapter

LLAMA_CPP = {"name": "llama-cpp", "dtype": "float32", "options": {"threads": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a good configuration for llama.cpp."""
    folder = tmp_path_factory.mktemp("run")
    make_tiny(folder, rank=2)
    write_run(folder, backend=LLAMA_CPP)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    """The model and the adapter of that folder in GGUF, and nothing else."""
    model = convert_model(folder / "model", folder / "model.gguf")
    lora.write_gguf_adapter(read_adapter(folder / "adapter"), folder / "adapter.gguf", "llama", (4, 2))
    return [f"model.path={model}", f"model.adapter={folder / 'adapter.gguf'}"]


def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one_without_noise(folder):
    whole = kill_once_and_resume(folder)
    result = json.loads((folder / "runs" / "small" / "result.json").read_text())
    assert result["verification"]["agreement"] == 1.0
    for word in ("llama_", "ggml", "gguf", "load_tensors", "n_ctx"):
        assert word not in whole.stdout.lower()


def test_a_run_needs_no_hugging_face_model_and_its_result_goes_back_to_gguf(folder, files, tmp_path):
    done = esalign("run", folder / "run.yaml", *files, "run.name=files", "run.generations=1")
    assert (done.returncode, done.stderr) == (0, "")
    run = folder / "runs" / "files"
    written = esalign("export", run, "--gguf", tmp_path / "best.gguf")
    assert (written.returncode, written.stderr) == (0, "")
    assert "the engine's own factors" in written.stdout
    best = lora.read_gguf_adapter(tmp_path / "best.gguf", folder / "model.gguf")
    for ours, theirs in zip(best.modules, read_adapter(run / "adapter").modules, strict=True):
        assert ours.name == theirs.name
        assert (ours.A == theirs.A).all()


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
from esalign.cli import main
main()
"""


def test_a_gguf_file_prompts_and_a_reward_are_enough_and_torch_is_not_needed(folder, tmp_path):
    model = convert_model(folder / "model", tmp_path / "alone.gguf")
    arguments = [
        *("run", "--backend", "llama-cpp", f"model.path={model}", f"data.source={folder / 'data.jsonl'}"),
        *(f"rewards={folder / 'reward.py'}:variety", "space.rank=2", "backend.options={threads: 1}"),
        *("data.validation_size=8", "data.test_size=16", "fitness.prompts=4", "sampling.max_tokens=8"),
        *("optimizer.population=4", "run.generations=2", f"run.dir={tmp_path}", "run.name=alone"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "alone"
    assert "the engine's own factors" in json.loads((run / "result.json").read_text())["verification"]["note"]
    assert (run / "report.html").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["space"]["name"] == "base-svd"
    # The file that llama.cpp loads with --lora says the same as the PEFT folder.
    written = lora.read_gguf_adapter(run / "adapter.gguf", model)
    for ours, theirs in zip(written.modules, read_adapter(run / "adapter").modules, strict=True):
        assert ours.name == theirs.name
        np.testing.assert_allclose(ours.B @ ours.A * ours.scaling, theirs.B @ theirs.A * theirs.scaling, atol=1e-6)


def refused(done, *told):
    """Assert that a command ended with exit code 2 and one line that tells why."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in told:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("backend.options={thread: 1}", "no option 'thread', did you mean 'threads'?"),
        ("backend.options={threads: two}", "option 'threads' is 'two', input should be a valid integer"),
        ("backend.options={kv_memory_gb: much}", "option 'kv_memory_gb' is 'much', input should be a valid number"),
        (
            "backend.options={chat_template_kwargs: no}",
            "option 'chat_template_kwargs' is False, input should be an object",
        ),
        ("backend.options={quantization: q4_k_m}", "needs rows that divide by 256"),
        ("backend.options={context: 12}", "context of 12 less sampling.max_tokens 8"),
        ("backend.device=cuda", "llama.cpp was built without GPUs"),
        ("model.path=/nowhere.gguf", "'/nowhere.gguf' cannot be read: No such file"),
        ("model.path=/nowhere", "model '/nowhere' is neither a folder with"),
        ("model.adapter=/nowhere.gguf", "'/nowhere.gguf' cannot be read: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, override, told):
    refused(esalign("run", folder / "run.yaml", "run.name=mistake", override), told)


DAMAGES = {
    "cut in half": (lambda raw: raw[: len(raw) // 2], "is the download complete?"),
    "garbage": (lambda raw: raw[::-1], "is not a GGUF file"),
    "unknown architecture": (
        lambda raw: raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0alpha", 1),
        "unknown model architecture: 'alpha', expected one of llama, qwen2, qwen3",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_broken_model_file_is_one_line(folder, files, tmp_path, damage):
    break_it, told = DAMAGES[damage]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(break_it((folder / "model.gguf").read_bytes()))
    override = f"model.path={broken}"
    refused(esalign("run", folder / "run.yaml", "run.name=mistake", override), "broken.gguf", told)


@pytest.mark.parametrize("damage", ["cut in half", "garbage"])
def test_a_broken_adapter_file_is_one_line(folder, files, tmp_path, damage):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(DAMAGES[damage][0]((folder / "adapter.gguf").read_bytes()))
    refused(esalign("run", folder / "run.yaml", files[0], "run.name=mistake", f"model.adapter={broken}"), "broken.gguf")


def test_an_architecture_that_only_llama_cpp_knows_is_one_line(folder, files, tmp_path, monkeypatch):
    pretend_smollm3(monkeypatch)
    other = convert_model(folder / "model", tmp_path / "smollm3.gguf")
    done = esalign("run", folder / "run.yaml", "run.name=mistake", f"model.path={other}")
    refused(done, "is of architecture 'smollm3', expected one of llama, qwen2, qwen3")


def test_files_that_do_not_belong_together_are_one_line(folder, files, tmp_path):
    def run(*overrides):
        return esalign("run", folder / "run.yaml", "run.name=mistake", *overrides)

    model, adapter = files
    refused(run(adapter), "goes with a model in a GGUF file", "/model' is no file")
    refused(run(model, f"model.adapter={folder / 'model.gguf'}"), "is not a LoRA adapter")
    qwen = convert_model(make_tiny(tmp_path, "qwen2").model, tmp_path / "qwen.gguf")
    refused(run(f"model.path={qwen}", adapter), "the adapter is for architecture 'llama'", "is of 'qwen2'")
    deep = make_tiny(tmp_path / "deep", rank=2, num_hidden_layers=3)
    refused(run(model, f"model.adapter={deep.adapter}"), "use the model that the adapter was trained on")
    small = quantize_model(folder / "model.gguf", tmp_path / "q8.gguf", "q8_0")
    refused(run(f"model.path={small}", adapter, "backend.options={quantization: q4_0}"), "which has its own")
