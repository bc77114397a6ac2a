"""The llama.cpp engine against the contract of all engines."""

from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import LlamaCppBackend, convert_model
from models import ATTENTION, FUSED, MLP, make_tiny

import esalign
from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Subject

SUBJECTS = {
    "llama": ("llama", {"targets": ATTENTION + MLP}, {}),
    "phi3-files": ("phi3", {"targets": FUSED}, {"method": "files"}),
    "qwen2": ("qwen2", {"seed": 1}, {"sequences": 3, "batch": 16}),
    "gemma3": ("gemma3", {"targets": (*ATTENTION, "down_proj"), "tie_word_embeddings": True}, {"kv_unified": True}),
}


PARITY = [claim for claim in BACKEND_CLAIMS if claim.__name__.endswith("as_the_folded_adapter_does")]


@pytest.fixture(scope="module", params=list(SUBJECTS))
def subject(request, tmp_path_factory):
    architecture, overrides, options = SUBJECTS[request.param]
    tiny = make_tiny(tmp_path_factory.mktemp(request.param), architecture, **overrides)
    space = SvdLora.from_pretrained(tiny.adapter)
    make = partial(LlamaCppBackend, tiny.model, space, threads=1, **options)
    # random weights give logits as large as 30, of which float32 is good to about 1e-4; GELU, to 16 bits
    rounded = {"agreement": 0.95, "score_tolerance": 2e-2} if architecture == "gemma3" else {"score_tolerance": 5e-4}
    subject = Subject(make, model=tiny.model, space=space, **rounded)
    yield subject
    subject.backend.close()


@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
def test_spaces_of_the_models_own_weights_answer_as_the_folded_adapter_does(from_weights, claim):
    claim(from_weights)


EMBEDDED = Path(esalign.__file__).parent / "assets" / "embedded"


@pytest.fixture(scope="module", params=["base-svd", "tied"])
def from_weights(request, tmp_path_factory):
    """A space that is read from a GGUF file. The engine gets the folder, as only that names all ends of a text."""
    tiny = make_tiny(tmp_path_factory.mktemp(request.param))
    model = str(convert_model(tiny.model, tiny.model.parent / "model.gguf"))
    space = esalign.make_space("base-svd", model=model, rank=3, tie=5 if request.param == "tied" else None)
    make = partial(LlamaCppBackend, tiny.model, space, threads=1)
    subject = Subject(make, model=tiny.model, space=space, score_tolerance=5e-4, spread=1.2)
    yield subject
    subject.backend.close()


@pytest.fixture(scope="module")
def embedded():
    """The acceptance of all engines, on fewer candidates: 99.5 % of sequences equal, scores within 1e-3."""
    space = SvdLora.from_pretrained(EMBEDDED / "adapter")
    make = partial(LlamaCppBackend, EMBEDDED / "model", space, threads=1, dtype="float32")
    subject = Subject(
        make,
        model=EMBEDDED / "model",
        space=space,
        agreement=0.995,
        score_tolerance=1e-3,
        chat=False,
        spread=0.3,
    )
    yield subject
    subject.backend.close()


# a trained model is too sure of its answers to show that draws differ
NEED_DOUBT = {
    "draws_alike_for_all_candidates",
    "draws_within_top_k_and_top_p",
    "completes_greedily_and_draws_in_one_call",
}


@pytest.mark.parametrize(
    "claim",
    [claim for claim in BACKEND_CLAIMS if claim.__name__ not in NEED_DOUBT],
    ids=lambda claim: claim.__name__,
)
def test_llama_cpp_keeps_the_contract_on_the_embedded_model(embedded, claim):
    claim(embedded)


def test_a_converted_model_keeps_its_own_tokenizer(embedded, tmp_path):
    """GGUF has no name for how the embedded one cuts up text, so the file's vocabulary tokenises otherwise."""
    text = "Using the numbers 12, 345 and 6789, create an expression."
    expected = tuple(embedded.reference.tokenizer(text)["input_ids"])
    assert embedded.backend.encode(text) == expected
    file = LlamaCppBackend(convert_model(EMBEDDED / "model", tmp_path / "m.gguf"), None, threads=1)
    assert file.encode(text) != expected
    file.close()


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_llama_cpp_keeps_the_contract(subject, claim):
    claim(subject)
