"""The fake engine holds the contract of engines, and writes what it is told."""

import subprocess
import sys
from functools import cached_property, partial
from types import SimpleNamespace

import numpy as np
import pytest

from esalign.errors import BackendError, ConfigError
from esalign.registry import load_backend
from esalign.testing import BACKEND_CLAIMS, FakeBackend, Subject
from esalign.testing.fake import END, VOCAB, ByteTokenizer
from esalign.types import Sampling

DIM = 5
NEEDS_TRANSFORMERS = "as_the_folded_adapter_does"  # end of the names of claims


class OwnReference:
    """What the claims ask of a reference, from the fake's own scores: so generation is held to scoring."""

    vocab, context, ends, tokenizer = VOCAB, 4096, frozenset({END}), ByteTokenizer()

    def __init__(self, backend):
        self.backend = backend

    def log_probabilities(self, candidate, prompt, answer):
        everything = np.tile(np.arange(VOCAB), (len(answer), 1))
        return self.backend.score(np.asarray(candidate)[None], [(prompt, answer)], [everything])[0][0]


class FakeSubject(Subject):
    """A subject that brings its own reference."""

    @cached_property
    def reference(self):
        return OwnReference(self.backend)


def make_fake(**options):
    return FakeBackend("any", SimpleNamespace(dim=DIM), **options)


def tell(candidate, prompt):
    """Three words that depend on the prompt and on the candidate."""
    return f"{len(prompt)} is the length, {candidate.sum():.3f} the sum"


@pytest.fixture(scope="module", params=[None, tell], ids=["random", "told"])
def subject(request):
    make = partial(make_fake, completions=request.param, confidence=3.0)
    return FakeSubject(make, model="any", space=SimpleNamespace(dim=DIM))


# --- the contract ---


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_the_fake_holds_the_contract_of_engines(subject, claim):
    if claim.__name__.endswith(NEEDS_TRANSFORMERS):
        pytest.skip("compares with transformers, which cannot load a model of bytes and numpy")
    claim(subject)


def test_it_needs_neither_torch_nor_transformers():
    code = (
        "import sys, numpy as np\n"
        "from esalign.testing import FakeBackend\n"
        "from esalign.types import Sampling\n"
        "FakeBackend('any').generate(np.zeros((1, 0)), [[{'role': 'user', 'content': 'hello'}]], Sampling())\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_is_found_by_name_as_every_engine_is():
    backend = load_backend("fake", model="any", space=None, dtype="float32", device="cpu", completions={"a": "b"})
    assert backend.generate(np.zeros((1, 0)), ["a"], Sampling())[0][0].text == "b"
    with pytest.raises(ConfigError, match="backend 'fake' has no option 'completion', did you mean 'completions'"):
        load_backend("fake", model="any", space=None, completion={})


def test_a_closed_engine_says_so():
    backend = make_fake()
    backend.close()
    for call in (
        lambda: backend.generate(np.zeros((1, DIM)), ["a"], Sampling()),
        lambda: backend.score(np.zeros((1, DIM)), [((1,), (2,))]),
        lambda: backend.encode("a"),
    ):
        with pytest.raises(BackendError, match="the engine was closed: make a new one"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4', expected one of auto, float32"),
        ({"device": "cuda"}, "device is 'cuda', expected one of auto, cpu"),
        ({"confidence": 0.0}, "confidence is 0.0, expected a number above 0"),
    ],
)
def test_what_it_has_not_is_one_clear_line(options, message):
    with pytest.raises(BackendError) as caught:
        make_fake(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (np.zeros((2, 3)), "support 0 has shape .2, 3. and type float64, expected integers of shape .2, k."),
        (np.zeros((1, 3), int), "support 0 has shape .1, 3."),
        (np.full((2, 3), VOCAB), "support 0 holds ids outside of the vocabulary, 0 to 256"),
    ],
)
def test_wrong_supports_are_refused(support, message):
    with pytest.raises(BackendError, match=message):
        make_fake().score(np.zeros((1, DIM)), [((1,), (2, 3))], [support])


# --- what it writes ---


def test_a_table_tells_what_to_write_and_other_prompts_are_left_to_the_weights():
    told, plain = make_fake(completions={"2 + 2 =": " 4", "東京?": "🙂"}), make_fake()
    prompts, start = ["2 + 2 =", "東京?", "another"], np.zeros((2, DIM))
    rows = told.generate(start, prompts, Sampling())
    assert [answer.text for answer in rows[0][:2]] == [" 4", "🙂"]
    assert [answer.finish_reason for answer in rows[0][:2]] == ["stop", "stop"]
    assert [row[2] for row in rows] == [row[2] for row in plain.generate(start, prompts, Sampling())]


def test_a_table_is_looked_up_by_the_text_that_ids_and_chats_are_fed_as():
    backend = make_fake(completions={"user: hello\nassistant:": "good day", "abc": "d"})
    prompts = [[{"role": "user", "content": "hello"}], list(b"abc")]
    [row] = backend.generate(np.zeros((1, DIM)), prompts, Sampling())
    assert [answer.text for answer in row] == ["good day", "d"]


def test_a_function_tells_what_a_candidate_writes():
    backend = make_fake(completions=lambda candidate, prompt: prompt.upper() * int(candidate[0]))
    [[one], [three]] = backend.generate(np.array([[1.0] * DIM, [3.0] * DIM]), ["ab"], Sampling())
    assert (one.text, three.text) == ("AB", "ABABAB")


def test_sampled_answers_are_as_told_as_often_as_their_probability_says():
    backend = make_fake(completions={"a": "bc"}, confidence=3.0)
    ids = (*b"bc", END)
    [[scores]] = backend.score(np.zeros((1, DIM)), [(backend.encode("a"), ids)])
    expected = float(np.exp(scores.sum()))
    [row] = backend.generate(np.zeros((1, DIM)), ["a"] * 2000, Sampling(temperature=1.0, max_tokens=3))
    seen = np.mean([answer.token_ids == ids for answer in row])
    assert 0.2 < expected < 0.95
    assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000)


def test_probabilities_sum_to_one_at_every_place():
    table = OwnReference(make_fake()).log_probabilities(np.ones(DIM), (1, 2, 3), (4, 5))
    assert np.exp(table.astype(np.float64)).sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
