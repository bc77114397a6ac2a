"""An engine that computes a model otherwise than transformers is found before the first generation."""

import warnings

import numpy as np
import pytest
from command_server import call_here
from esalign_torch import TorchBackend
from models import make_tiny
from runs import esalign, write_run

from esalign.config.sections import BackendSection
from esalign.errors import BackendError, EsalignWarning
from esalign.run import self_test as module
from esalign.run.self_test import self_test
from esalign.space import SvdLora
from esalign.types import Example

EXAMPLES = [Example(f"{n} + 3 =") for n in range(40)] + [Example("long " * 50)]


class Wrong(TorchBackend):
    """An engine that takes every candidate for the start, as one that does not switch adapters."""

    def generate(self, candidates, prompts, sampling, on_completion=None):
        return super().generate(np.zeros_like(candidates), prompts, sampling, on_completion)

    def score(self, candidates, sequences, support=None):
        return super().score(np.zeros_like(candidates), sequences, support)


class WrongScore(TorchBackend):
    """An engine whose log-probabilities alone are off, as without a soft cap."""

    def score(self, candidates, sequences, support=None):
        return [[1.1 * row for row in rows] for rows in super().score(candidates, sequences, support)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(monkeypatch):
    """Let transformers be asked in this process, which has imported them."""
    monkeypatch.setattr(module, "call_apart", call_here)


def run_test(tiny, kind=TorchBackend, **section):
    """Test an engine, and return what it warned of."""
    space = SvdLora.from_pretrained(tiny.adapter)
    config = BackendSection(**{"dtype": "float32", **section})
    backend = kind(tiny.model, space, dtype=config.dtype, device="cpu")
    candidate = np.random.default_rng(0).standard_normal(space.dim)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EsalignWarning)
        self_test(backend, config, model=str(tiny.model), space=space, candidate=candidate, examples=EXAMPLES)
    return [str(warning.message) for warning in caught if warning.category is EsalignWarning]


def test_an_engine_that_computes_the_model_as_transformers_passes(tiny):
    assert run_test(tiny) == []


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama", "bfloat16"), ("gemma2", "float32"), ("gemma3", "bfloat16")]
)
@pytest.mark.usefixtures("here")
def test_so_does_one_with_a_soft_cap_or_in_half_precision(tmp_path, architecture, dtype):
    assert run_test(make_tiny(tmp_path, architecture), dtype=dtype) == []


@pytest.mark.parametrize("kind", [Wrong, WrongScore])
@pytest.mark.usefixtures("here")
def test_in_float32_one_that_does_not_is_refused(tiny, kind):
    with pytest.raises(BackendError, match=r"otherwise than transformers: .*use another backend, or .*self_test=0$"):
        run_test(tiny, kind)


@pytest.mark.usefixtures("here")
def test_in_other_types_it_is_warned_of(tiny):
    [warning] = run_test(tiny, Wrong, dtype="bfloat16")
    assert "otherwise than transformers" in warning


@pytest.mark.parametrize(
    "section", [{"self_test": 0}, {"self_test": 1e-5}, {"options": {"quantization": "int8"}}], ids=str
)
def test_it_is_left_out_where_it_cannot_tell_or_the_model_is_too_large(tiny, monkeypatch, section):
    monkeypatch.setattr(module, "call_apart", lambda *_, **__: pytest.fail("asked"))
    assert run_test(tiny, Wrong, **section) == []


def test_a_test_that_fails_is_warned_of_and_no_reason_to_stop(tiny, monkeypatch):
    def die(*_, **__):
        raise BackendError("the process of transformers and peft was killed by signal 9: out of memory?")

    monkeypatch.setattr(module, "call_apart", die)
    [warning] = run_test(tiny)
    assert warning.startswith("the engine was not compared with transformers: the process of")


def test_commands_test_their_engine(tmp_path):
    options = {"dtype": "float32", "device": "cpu", "options": {"chat_template_kwargs": None}}
    file = write_run(tmp_path, backend=options, run__generations=1)
    for command in (["run"], ["eval"]):
        done = esalign(*command[:1], file, *command[1:])
        assert (done.returncode, done.stderr) == (0, "")
