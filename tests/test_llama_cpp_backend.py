"""The llama.cpp engine against the contract, and against every way in which it could go wrong quietly."""

from functools import partial

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import LlamaCppBackend
from models import ATTENTION, MLP, make_tiny

from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Subject

SUBJECTS = {
    "llama": ("llama", {"targets": ATTENTION + MLP}, {}),
    "llama-files": ("llama", {}, {"method": "files"}),
    "qwen2": ("qwen2", {"seed": 1}, {"sequences": 3, "batch": 16}),
    "qwen3": ("qwen3", {"targets": (*ATTENTION, "down_proj")}, {"kv_unified": True}),
}


@pytest.fixture(scope="module", params=list(SUBJECTS))
def subject(request, tmp_path_factory):
    architecture, overrides, options = SUBJECTS[request.param]
    tiny = make_tiny(tmp_path_factory.mktemp(request.param), architecture, **overrides)
    space = SvdLora.from_pretrained(tiny.adapter)
    make = partial(LlamaCppBackend, tiny.model, space, threads=1, **options)
    # random weights give logits as large as 30, of which float32 is good to about 1e-4
    subject = Subject(make, model=tiny.model, space=space, score_tolerance=5e-4)
    yield subject
    subject.backend.close()


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_llama_cpp_keeps_the_contract(subject, claim):
    claim(subject)
