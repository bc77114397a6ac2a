"""The torch engine holds the contract of engines on every architecture, and keeps the promises of its own."""

from functools import partial

import pytest
from esalign_torch import TorchBackend
from models import ARCHITECTURES, make_tiny

from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Subject

PARITY = [claim for claim in BACKEND_CLAIMS if claim.__name__.endswith("as_the_folded_adapter_does")]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """One subject per architecture, made when first asked for."""
    made = {}

    def get(architecture):
        if architecture not in made:
            tiny = make_tiny(tmp_path_factory.mktemp(architecture), architecture)
            space = SvdLora.from_pretrained(tiny.adapter)
            made[architecture] = Subject(
                partial(TorchBackend, tiny.model, space, device="cpu"), model=tiny.model, space=space
            )
        return made[architecture]

    return get


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_torch_engine_holds_the_contract(subjects, claim):
    claim(subjects("llama"))


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
def test_every_architecture_equals_the_folded_adapter(subjects, architecture, claim):
    claim(subjects(architecture))
