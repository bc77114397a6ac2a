"""Text in the llama.cpp engine: a GGUF file alone cuts it as the tokenizer does, and special tokens stop."""

import json

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import LlamaCppBackend, convert_model, text
from esalign_llama_cpp.library import load_library
from esalign_llama_cpp.model import GgufModel
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


PREPEND, REPLACE = {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}}
FUSED = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
STYLES = {
    "phi": ([PREPEND, REPLACE | {"content": "\u2581"}], [*FUSED, STRIP]),
    "gemma": ([REPLACE | {"content": "\u2581"}], FUSED),
}


def write_bytes_tokenizer(folder, style):
    """Put a tokenizer with byte fallback, as SentencePiece's are, in the place of a model's own."""
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    specials = [entry["content"] for entry in raw["added_tokens"]]
    merges = [[" ".join(pair)[0], " ".join(pair)[-1]] for pair in ("e s", "1 2", "\u2581 t", "a n", "n d", "+ \u2581")]
    merges += [["\u2581t", "es"], ["an", "d"], ["\u2581", "\u2581"]]
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789+-=.,?\n", "\u2581", "\u00e9"})
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    normalizers, decoders = STYLES[style]
    raw |= {
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": None,
        },
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
    file.write_text(json.dumps(raw))
    return len(tokens)


@pytest.mark.parametrize("style", STYLES)
def test_a_tokenizer_with_byte_fallback_is_converted(tmp_path, style):
    scratch = make_model(tmp_path / "scratch")
    size = write_bytes_tokenizer(scratch, style)
    folder = make_model(tmp_path / "model", eos=(1,), vocab_size=size, tokenizer={"vocab_size": 320})
    write_bytes_tokenizer(folder, style)
    tokenizer = load_tokenizer(str(folder))
    model = GgufModel(load_library(), convert_model(folder, tmp_path / "model.gguf"))
    alone = text.GgufTokenizer(model)
    for written in ("tests and 12", " two  blanks", "plain 12+ 2 =", "caf\u00e9 \u4e2d\u6587", "line\nline", *TEXTS):
        ids = tokenizer(written)["input_ids"]
        assert alone(written)["input_ids"] == ids
        assert alone.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    model.close()


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
