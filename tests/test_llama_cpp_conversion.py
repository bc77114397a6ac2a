"""Models and adapters in GGUF: conversion, quantisation, export, and life without any Hugging Face model."""

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import esalign_llama_cpp
from esalign_llama_cpp import (
    LlamaCppBackend,
    convert_model,
    export_gguf,
    lora,
    names,
    read_gguf_adapter,
)
from esalign_llama_cpp.config import read_config
from esalign_llama_cpp.sources import find_source, fingerprint
from esalign_llama_cpp.vocabulary import name_of_cutter
from models import ATTENTION, FUSED, MLP, make_model, make_tiny, make_tokenizer

from esalign.errors import AdapterError
from esalign.space import BaseSvd, SvdLora
from esalign.space.adapter import Adapter, LoraModule, read_adapter, write_adapter
from esalign.testing import Reference
from esalign.types import Sampling

IDS = [[7, 8, 9, 10, 200, 201], [300, 20, 7], list(range(30, 75))]
CHAT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("conversion"), "llama", targets=ATTENTION + MLP)


@pytest.fixture(scope="module")
def gguf(tiny, tmp_path_factory):
    return convert_model(tiny.model, tmp_path_factory.mktemp("gguf") / "model.gguf")


def assert_scores_equal(model, space, *, tolerance=5e-4, **options):
    """Compare with transformers + peft, on all tokens of the vocabulary."""
    vector = np.zeros(space.dim)
    reference = Reference(model, space)
    backend = LlamaCppBackend(model, space, threads=1, **options)
    support = [np.tile(np.arange(reference.vocab), (len(ids) - 1, 1)) for ids in IDS]
    got = backend.score(vector[None], [(ids[:1], ids[1:]) for ids in IDS], support)[0]
    backend.close()
    for ids, table in zip(IDS, got, strict=True):
        np.testing.assert_allclose(
            table, reference.log_probabilities(vector, ids[:1], ids[1:])[:, : table.shape[1]], atol=tolerance
        )


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "attention biases": ("llama", {"attention_bias": True}),
    "MLP biases": ("llama", {"mlp_bias": True}),
    "tied head": ("llama", {"tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 32}),
    "one kv head": ("llama", {"num_key_value_heads": 1}),
    "all kv heads": ("llama", {"num_key_value_heads": 4}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}


GEMMA = {"tie_word_embeddings": True}
SCALED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
VARIANTS |= {
    "gemma2": ("gemma2", GEMMA),
    "gemma2, small caps": ("gemma2", GEMMA | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}),
    "gemma3": ("gemma3", GEMMA),
    "gemma3, own head": ("gemma3", {"tie_word_embeddings": False}),
    "gemma3, stretched": ("gemma3", GEMMA | {"rope_parameters": SCALED}),
    "gemma3, final cap": ("gemma3", GEMMA | {"final_logit_softcapping": 1.0}),
    "phi3": ("phi3", {}),
    "phi3, few turning": ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3 tied, one kv head": ("phi3", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_converted_models_compute_what_transformers_computes(variant, tmp_path):
    architecture, overrides = VARIANTS[variant]
    targets = FUSED if architecture == "phi3" else ATTENTION + MLP
    tiny = make_tiny(tmp_path, architecture, targets=targets, **overrides)
    _randomise_vectors(tiny.model)
    tolerance = 2e-2 if architecture.startswith("gemma") else 5e-4  # ggml reads GELU from a table of 16-bit floats
    assert_scores_equal(tiny.model, SvdLora.from_pretrained(tiny.adapter), tolerance=tolerance)


def _randomise_vectors(folder):
    """Biases start at 0 and norms at 1, where an error in their order would not show."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        if tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_a_space_of_the_weights_is_the_same_from_a_folder_and_from_a_gguf_file(tmp_path, architecture):
    model = make_model(tmp_path / "model", architecture, tie_word_embeddings=True)
    file = convert_model(model, tmp_path / "model.gguf")
    one, other = (BaseSvd(str(source), rank=2, targets="all-linear") for source in (model, file))
    assert [module.name for module in one.modules] == [module.name for module in other.modules]
    assert one.fingerprint == other.fingerprint


def test_there_are_biases_to_be_permuted(tmp_path):
    """The test above would not show it otherwise."""
    model = make_model(tmp_path, "llama", attention_bias=True)
    assert b"model.layers.0.self_attn.q_proj.bias" in (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.2), ("bfloat16", 1.5)])
def test_half_precision_is_near(tiny, dtype, tolerance):
    assert_scores_equal(tiny.model, SvdLora.from_pretrained(tiny.adapter), dtype=dtype, tolerance=tolerance)


def test_permutation_is_undone():
    rows = np.arange(24.0).reshape(12, 2)
    assert not np.array_equal(names.permute(rows, 2), rows)
    np.testing.assert_array_equal(names.unpermute(names.permute(rows, 2), 2), rows)
    np.testing.assert_array_equal(names.permute(np.arange(8), 2), [0, 2, 1, 3, 4, 6, 5, 7])


def test_the_cache_keeps_models_by_their_content(tiny, tmp_path):
    def find(model, quantization):
        return find_source(model, dtype="auto", quantization=quantization, cache=tmp_path / "cache", threads=1).gguf

    first = find(tiny.model, None)
    stamp = first.stat().st_mtime_ns
    assert find(tiny.model, None) == first
    assert first.stat().st_mtime_ns == stamp
    assert find(tiny.model, "q8_0") != first
    other = make_model(tmp_path / "model", seed=1)
    assert find(other, None).name != first.name
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".gguf"}


def test_the_fingerprint_sees_every_file(tmp_path):
    folder = make_model(tmp_path)
    seen = {fingerprint(folder)}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        seen.add(fingerprint(folder))
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("kind", "architecture", "overrides"),
    [
        ("q8_0", "qwen2", {}),
        ("q4_0", "llama", {}),
        ("q4_0", "llama", {"tie_word_embeddings": True}),  # the embedding is the output layer
        ("q4_k_m", "llama", {"hidden_size": 256, "intermediate_size": 512}),
    ],
)
def test_quantised_models_answer_nearly_alike(tmp_path, kind, architecture, overrides):
    tiny = make_tiny(tmp_path, architecture, initializer_range=0.05, **overrides)
    space = SvdLora.from_pretrained(tiny.adapter)
    pairs = [(ids[:2], ids[2:]) for ids in IDS]
    scores = []
    for quantization in (None, kind):
        backend = LlamaCppBackend(tiny.model, space, threads=1, quantization=quantization)
        scores.append(np.concatenate(backend.score(np.zeros((1, space.dim)), pairs)[0]))
        backend.close()
    assert 0 < np.abs(scores[1] - scores[0]).mean() < 0.3


# --- adapters -------------------------------------------------------------------------------------------------------


def mixed_adapter():
    """Ranks and scalings differ from layer to layer."""
    rng = np.random.default_rng(0)

    def module(name, out, rank, scaling):
        return LoraModule(
            f"model.layers.{name}",
            rng.standard_normal((rank, 64)).astype(np.float32),
            rng.standard_normal((out, rank)).astype(np.float32),
            scaling,
        )

    return Adapter(
        {},
        (
            module("0.self_attn.k_proj", 32, 2, 1.5),
            module("0.self_attn.q_proj", 64, 4, 2.0),
            module("1.mlp.up_proj", 96, 3, 0.25),
            module("1.self_attn.q_proj", 64, 4, 2.0),
        ),
    )


def test_adapters_read_back_as_they_were_written(tiny, gguf, tmp_path):
    for adapter in (read_adapter(tiny.adapter), mixed_adapter()):
        lora.write_gguf_adapter(adapter, tmp_path / "a.gguf", "llama", (4, 2))
        again = read_gguf_adapter(tmp_path / "a.gguf", gguf)
        assert [module.name for module in again.modules] == [module.name for module in adapter.modules]
        for ours, theirs in zip(again.modules, adapter.modules, strict=True):  # in the same order, too
            np.testing.assert_array_equal(ours.A, theirs.A)
            np.testing.assert_allclose(ours.scaling * ours.B, theirs.scaling * theirs.B, rtol=1e-6)


def test_the_order_of_layers_is_that_of_peft_folders_whatever_the_files(tiny, gguf, tmp_path):
    """A search vector means the same for both, and for files of other programs."""
    adapter = read_adapter(tiny.adapter)
    backwards = Adapter(adapter.config, adapter.modules[::-1])
    lora.write_gguf_adapter(backwards, tmp_path / "a.gguf", "llama", (4, 2))
    again = read_gguf_adapter(tmp_path / "a.gguf", gguf)
    assert [module.name for module in again.modules] == [module.name for module in adapter.modules]


def test_a_read_adapter_is_a_peft_adapter(gguf, tmp_path):
    lora.write_gguf_adapter(mixed_adapter(), tmp_path / "a.gguf", "llama", (4, 2))
    adapter = read_gguf_adapter(tmp_path / "a.gguf", gguf)
    again = read_adapter(write_adapter(adapter, tmp_path / "peft"))
    for ours, theirs in zip(again.modules, adapter.modules, strict=True):
        assert ours.scaling == pytest.approx(theirs.scaling)
        np.testing.assert_array_equal(ours.B, theirs.B)


def test_alpha_of_zero_means_a_scaling_of_one(gguf, tmp_path):
    factors = {"blk.0.attn_v.weight": (np.ones((2, 64), np.float32), np.ones((32, 2), np.float32))}
    lora.write_lora_gguf(tmp_path / "a.gguf", "llama", factors, alpha=0.0)
    assert read_gguf_adapter(tmp_path / "a.gguf", gguf).modules[0].scaling == 1.0
    lora.write_lora_gguf(tmp_path / "a.gguf", "llama", factors, alpha=8.0)
    assert read_gguf_adapter(tmp_path / "a.gguf", gguf).modules[0].scaling == 4.0


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_an_exported_adapter_is_checked_in_llama_cpp(tmp_path, architecture):
    tiny = make_tiny(tmp_path, architecture, targets=ATTENTION + MLP)
    line = export_gguf(tiny.adapter, tiny.model, tmp_path / "a.gguf")
    assert "transformers + peft" in line
    assert float(line.split(" by ")[1].split(",")[0]) < 1e-3
    model = convert_model(tiny.model, tmp_path / "m.gguf")
    assert "engine's own factors" in export_gguf(read_adapter(tiny.adapter), model, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_adapters_of_mixed_ranks_and_scalings_are_exported_rightly(tiny, tmp_path):
    write_adapter(Adapter(lora._peft_config(mixed_adapter().modules, ""), mixed_adapter().modules), tmp_path / "mixed")
    export_gguf(tmp_path / "mixed", tiny.model, tmp_path / "a.gguf")


@pytest.mark.parametrize("base", ["folder", "gguf"])
def test_an_export_that_does_something_else_is_refused(tiny, gguf, tmp_path, monkeypatch, base):
    monkeypatch.setattr(lora, "permute", lambda rows, _heads: rows)
    with pytest.raises(AdapterError, match="gives other logits"):
        export_gguf(tiny.adapter, tiny.model if base == "folder" else gguf, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_gguf_user_needs_no_hugging_face_model(tiny, gguf, tmp_path):
    """Model and adapter in GGUF give the same answers as the folders they were made from."""
    export_gguf(tiny.adapter, gguf, tmp_path / "a.gguf")
    spaces = (
        SvdLora.from_pretrained(tiny.adapter),
        SvdLora(read_gguf_adapter(tmp_path / "a.gguf", gguf)),
    )
    candidates = np.random.default_rng(0).standard_normal((3, spaces[0].dim)) * 0.5
    rows = []
    for model, space in zip((tiny.model, gguf), spaces, strict=True):
        backend = LlamaCppBackend(model, space, threads=1)
        rows.append(backend.generate(candidates, IDS, Sampling(max_tokens=10)))
        backend.close()
    ends = set(read_config(tiny.model).ends)
    for ours, theirs in zip(*rows, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            cut = next((at for at, token in enumerate(a.token_ids) if token in ends), 10)
            assert a.token_ids[:cut] == b.token_ids[:cut]


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_the_files_own_vocabulary_encodes_as_the_tokenizer_does(tiny, gguf):
    ours, theirs = (LlamaCppBackend(model, None, threads=1) for model in (gguf, tiny.model))
    for prompt in ("Find a sum: 3 + 4 = 7", "Ein Größenvergleich: naïve café 🙂", "a<|end|>b", "  two\n\nlines ", CHAT):
        assert ours.encode(prompt) == theirs.encode(prompt)
    ids = ours.encode("The answer is 42. <|end|> 東京")
    assert ours._codec.decode(ids) == theirs._codec.decode(ids) == "The answer is 42.  東京"
    for backend in (ours, theirs):
        backend.close()


def test_a_bos_token_is_put_before_texts_and_not_before_chats(tmp_path):
    make_model(tmp_path / "m", tokenizer={"bos": True})
    model = convert_model(tmp_path / "m", tmp_path / "m.gguf")
    ours, theirs = (LlamaCppBackend(path, None, threads=1) for path in (model, tmp_path / "m"))
    assert ours.encode("1 + 2")[0] == 2
    for prompt in ("1 + 2", CHAT):
        assert ours.encode(prompt) == theirs.encode(prompt)
    for backend in (ours, theirs):
        backend.close()


def test_a_tokenizer_may_be_given_with_a_gguf_file(tiny, gguf, tmp_path):
    other = make_tokenizer(tmp_path / "other", vocab_size=280)
    backend = LlamaCppBackend(gguf, None, threads=1, tokenizer=other)
    plain = LlamaCppBackend(gguf, None, threads=1)
    assert backend.encode("Find the answer") != plain.encode("Find the answer")
    for made in (backend, plain):
        made.close()


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_all_ends_of_the_generation_config_end_an_answer(tmp_path, source):
    model = make_model(tmp_path / "m", eos=(1, 40, 50))
    if source == "gguf":
        model = convert_model(model, tmp_path / "m.gguf")
    backend = LlamaCppBackend(model, None, threads=1)
    assert {1, 40, 50} <= backend._codec.ends
    backend.close()


def test_ways_to_cut_text_get_their_names():
    qwen = {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"}}
    llama = {
        "type": "Split",
        "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"},
    }
    byte_level = {"type": "ByteLevel", "use_regex": False}
    assert name_of_cutter({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [qwen, byte_level]}}) == "qwen2"
    assert name_of_cutter({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [llama, byte_level]}}) == "llama-bpe"
    assert name_of_cutter({"pre_tokenizer": {"type": "ByteLevel"}}) == "gpt-2"
    assert name_of_cutter({"pre_tokenizer": byte_level}) == "default"
    assert name_of_cutter({"pre_tokenizer": None}) == "default"


def test_stop_strings_across_tokens_end_answers_by_the_files_vocabulary(gguf):
    backend = LlamaCppBackend(gguf, None, threads=1)
    free = backend.generate(np.zeros((1, 0)), IDS, Sampling(max_tokens=30))[0]
    for j, answer in enumerate(free):
        clear = [
            at for at in range(4, len(answer.text) - 2) if "\N{REPLACEMENT CHARACTER}" not in answer.text[at : at + 2]
        ]
        stop = answer.text[clear[0] : clear[0] + 2]
        stopped = backend.generate(np.zeros((1, 0)), IDS, Sampling(max_tokens=30, stop=(stop,)))[0][j]
        assert stopped.text == answer.text[: answer.text.index(stop)]
        assert stopped.finish_reason == "stop"
        assert answer.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    backend.close()


def test_public_names_are_there():
    for name in esalign_llama_cpp.__all__:
        assert hasattr(esalign_llama_cpp, name)
