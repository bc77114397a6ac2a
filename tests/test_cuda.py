"""The torch engine on a GPU: it holds the contract there, agrees with itself on the CPU, and does the main job."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from esalign_torch import TorchBackend
from models import ARCHITECTURES, make_tiny
from runs import reproducible, write_run

from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Subject
from esalign.testing.subject import ids_of
from esalign.types import Sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

COMMAND = (sys.executable, "-c", "from esalign.cli import main; main()")
"""In a new process: one forked from a process that has looked at the GPU cannot use it."""

PARITY = [claim for claim in BACKEND_CLAIMS if claim.__name__.endswith("as_the_folded_adapter_does")]


def make_subject(folder, architecture):
    tiny = make_tiny(folder, architecture)
    space = SvdLora.from_pretrained(tiny.adapter)
    return Subject(partial(TorchBackend, tiny.model, space, device="cuda"), model=tiny.model, space=space)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_the_contract_holds_on_a_gpu(llama, claim):
    claim(llama)


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
def test_every_architecture_equals_the_folded_adapter_on_a_gpu(tmp_path, architecture, claim):
    claim(make_subject(tmp_path, architecture))


def test_gpu_and_cpu_agree(llama):
    cpu = TorchBackend(llama.model, llama.space, device="cpu")
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_tokens=24, temperature=temperature, seed=3)
        rows = [ids_of(engine.generate(llama.candidates, llama.prompts, sampling)) for engine in (llama.backend, cpu)]
        llama.agrees(*rows, slack=2)


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "int4"}], ids=str
)
def test_low_precision_is_near_float32_on_a_gpu(llama, options):
    low = TorchBackend(llama.model, llama.space, device="cuda", **options)
    sequences = [(llama.backend.encode(prompt), (5, 6, 7)) for prompt in llama.prompts]
    whole, rough = (np.array(engine.score(llama.candidates, sequences)) for engine in (llama.backend, low))
    assert 0.0 < np.abs(whole - rough).mean() < 0.5 * np.abs(whole - whole.mean()).mean()


def test_a_run_on_a_gpu_repeats_itself_and_its_adapter_is_verified(tmp_path):
    results = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        file = write_run(folder, backend={"dtype": "float32", "device": "cuda"})
        done = subprocess.run([*COMMAND, "run", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        run = folder / "runs" / "small"
        assert json.loads((run / "result.json").read_text())["verification"]["agreement"] == 1.0
        results.append((reproducible(run), (run / "adapter" / "adapter_model.safetensors").read_bytes()))
    assert results[0] == results[1]
