"""Text in the llama.cpp engine: a GGUF file alone cuts it as the tokenizer does, and special tokens stop."""

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import LlamaCppBackend, convert_model, text
from models import append_end, make_model, set_normalizer
from special_stops import check_special_stops

from esalign.engines.loading import load_tokenizer
from esalign.types import Sampling

TEXTS = ("cafe\u0301 = 42", "na\u0131\u0308ve", "\u212b + \ufb01", "A\u030a", "plain 2 + 2 =", "\u1e9b\u0323")
PROMPTS = [f"{n} + {n} =" for n in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("text") / "model", eos=(1,))


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "NFC"},
        {"type": "NFKC"},
        {"type": "NFD"},
        {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
    ],
    ids=lambda normalizer: normalizer["type"],
)
def test_a_gguf_file_alone_gives_the_ids_of_a_tokenizer_with_a_normaliser(tmp_path, normalizer):
    folder = make_model(tmp_path / "model")
    plain = load_tokenizer(str(folder))
    set_normalizer(folder, normalizer)
    tokenizer = load_tokenizer(str(folder))
    with_folder = LlamaCppBackend(folder, threads=1)
    alone = LlamaCppBackend(convert_model(folder, tmp_path / "model.gguf"), threads=1)
    try:
        for written in TEXTS:
            expected = tuple(tokenizer(written)["input_ids"])
            assert alone.encode(written) == with_folder.encode(written) == expected
        assert alone.encode(TEXTS[0]) != tuple(plain(TEXTS[0])["input_ids"]) or normalizer["type"] == "NFD"
    finally:
        with_folder.close()
        alone.close()


def test_a_qwen2_file_of_others_is_normalised_as_its_tokenizer_is(model, tmp_path, monkeypatch):
    """Converters write no normaliser; it is known by the name of the way to cut up text."""
    alone = LlamaCppBackend(convert_model(model, tmp_path / "model.gguf"), threads=1)
    [(name, normalizer)] = text.KNOWN_NORMALIZERS.items()
    assert (name, normalizer) == ("qwen2", {"type": "NFC"})
    assert alone.encode("cafe\u0301") != alone.encode("caf\u00e9")
    alone.close()
    monkeypatch.setitem(text.KNOWN_NORMALIZERS, "gpt-2", normalizer)
    alone = LlamaCppBackend(tmp_path / "model.gguf", threads=1)
    assert alone.encode("cafe\u0301") == alone.encode("caf\u00e9")
    alone.close()


@pytest.mark.parametrize("alone", [False, True])
def test_special_tokens_in_stop_strings_stop(model, tmp_path, alone):
    source = convert_model(model, tmp_path / "model.gguf") if alone else model
    backend = LlamaCppBackend(source, threads=1)
    check_special_stops(backend, load_tokenizer(str(model)), PROMPTS)
    backend.close()


def test_a_tokenizer_that_appends_its_end_does_not_end_prompts(tmp_path):
    folder = make_model(tmp_path / "model")
    plain = load_tokenizer(str(folder))
    append_end(folder)
    for source in (folder, convert_model(folder, tmp_path / "model.gguf")):
        backend = LlamaCppBackend(source, threads=1)
        assert backend.encode("2 + 2 =") == tuple(plain("2 + 2 =")["input_ids"])
        assert backend.context == 256
        assert len(backend.generate([[]], ["2 + 2 ="], Sampling(max_tokens=2))[0][0].token_ids) >= 1
        backend.close()


def test_a_begin_in_the_text_is_not_doubled(tmp_path):
    folder = make_model(tmp_path / "model", tokenizer={"bos": True})
    for source in (folder, convert_model(folder, tmp_path / "model.gguf")):
        backend = LlamaCppBackend(source, threads=1)
        assert backend.encode("<|bos|>2 + 2 =") == backend.encode("2 + 2 =")
        assert backend.encode("2 + 2 =")[0] == 2
        backend.close()
