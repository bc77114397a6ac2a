"""The spaces that start from the model alone: its own singular directions, and few numbers that move them."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from esalign_torch import TorchBackend
from models import make_model, make_tiny
from safetensors.numpy import load_file

import esalign
from esalign.errors import AdapterError, BackendError, ConfigError
from esalign.space import BaseSvd, TiedSpace, decompose
from esalign.space.decompose import cached_svd, top_svd
from esalign.space.targets import choose_layers
from esalign.space.weights import open_weights
from esalign.testing import BACKEND_CLAIMS, Subject
from esalign.types import Sampling

PROMPTS = ["3 + 4 =", "Find a sum:", [{"role": "user", "content": "12 - 5"}]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def space(tiny):
    return BaseSvd(str(tiny.model), rank=3)


@pytest.fixture(scope="module")
def weights(tiny):
    return load_file(tiny.model / "model.safetensors")


def random_vector(space, spread=0.3, seed=0):
    return np.random.default_rng(seed).standard_normal(space.dim) * spread


# --- what a vector means


@pytest.mark.parametrize("skip", [0, 2])
def test_update_runs_along_the_singular_directions_of_the_weights(tiny, weights, skip):
    space = BaseSvd(str(tiny.model), rank=3, skip=skip)
    vector = random_vector(space)
    for number, module in enumerate(space.fold(vector).modules):
        U, S, Vt = np.linalg.svd(weights[f"{module.name}.weight"].astype(np.float64), full_matrices=False)
        top = slice(skip, skip + 3)
        scale = np.sqrt(np.mean(S[top] ** 2)) / np.sqrt(8)  # of 8 layers
        expected = (U[:, top] * (scale * vector[3 * number : 3 * number + 3])) @ Vt[top]
        np.testing.assert_allclose(module.scaling * module.B @ module.A, expected, atol=1e-5)


@pytest.mark.parametrize("tie", [None, 5])
def test_zero_vector_is_the_model_to_the_last_bit(tiny, space, tie):
    space = space if tie is None else TiedSpace(space, tie=tie)
    bare, spaced = TorchBackend(tiny.model, None, device="cpu"), TorchBackend(tiny.model, space, device="cpu")
    sequences = [(spaced.encode(prompt), (5, 9, 33, 7)) for prompt in PROMPTS]
    [without] = bare.score(np.zeros((1, 0)), sequences)
    [within] = spaced.score(np.zeros((1, space.dim)), sequences)
    for expected, got in zip(without, within, strict=True):
        assert np.array_equal(expected, got)
    assert spaced.generate(np.zeros((1, space.dim)), PROMPTS, Sampling(max_tokens=8)) == bare.generate(
        np.zeros((1, 0)), PROMPTS, Sampling(max_tokens=8)
    )


def test_saved_adapter_reads_back_as_it_was_written(tiny, tmp_path):
    from esalign.space import read_adapter

    space = BaseSvd(tiny.model, rank=3)  # a path, not a text, may name the model
    vector = random_vector(space)
    space.save_pretrained(vector, tmp_path)
    for meant, read in zip(space.fold(vector).modules, read_adapter(tmp_path).modules, strict=True):
        assert (meant.name, meant.scaling) == (read.name, read.scaling)
        assert np.array_equal(meant.A, read.A)
        assert np.array_equal(meant.B, read.B)


@pytest.mark.parametrize(
    ("options", "layers", "per_layer"),
    [
        ({}, 2, ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ({"targets": ["down_proj", "self_attn.q_proj"]}, 2, ["down_proj", "q_proj"]),
        ({"targets": "v_proj", "layers": [1]}, 1, ["v_proj"]),
        (
            {"targets": "all-linear"},
            2,
            ["down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"],
        ),
        (
            {"targets": ["all-linear"], "layers": [0]},
            1,
            ["down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"],
        ),
    ],
)
def test_targets_and_layers_choose_what_is_searched(tiny, options, layers, per_layer):
    space = BaseSvd(str(tiny.model), rank=2, **options)
    assert [module.name.rpartition(".")[2] for module in space.modules] == per_layer * layers
    assert space.dim == 2 * len(per_layer) * layers


def test_equal_weights_and_options_have_one_fingerprint(tiny, space, tmp_path):
    other = make_model(tmp_path / "other", seed=7)
    assert BaseSvd(str(tiny.model), rank=3).fingerprint == space.fingerprint
    different = [
        BaseSvd(str(other), rank=3),
        BaseSvd(str(tiny.model), rank=2),
        BaseSvd(str(tiny.model), rank=3, skip=1),
        BaseSvd(str(tiny.model), rank=3, layers=[0]),
    ]
    assert len({one.fingerprint for one in [space, *different]}) == 5


def test_layers_that_a_checkpoint_stores_transposed_are_read_as_out_by_in(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    matrix = open_weights(str(tmp_path)).read("transformer.h.0.attn.c_attn")
    assert matrix.shape == (48, 16)
    assert np.array_equal(matrix, model.transformer.h[0].attn.c_attn.weight.detach().numpy().T)


# --- few numbers


@pytest.mark.parametrize("over", ["all", "layers"])
def test_tied_vector_is_an_orthonormal_map_that_keeps_the_size_of_steps(space, over):
    tied = TiedSpace(space, tie=2, over=over, seed=3)
    assert tied.dim == (2 if over == "all" else 2 * len(space.modules))
    images = tied.untie(np.eye(tied.dim))
    norm = np.sqrt(space.dim / tied.dim)
    np.testing.assert_allclose(images @ images.T, norm**2 * np.eye(tied.dim), atol=1e-9)
    vector = random_vector(tied)
    for mine, theirs in zip(tied.fold(vector).modules, space.fold(tied.untie(vector[None])[0]).modules, strict=True):
        assert np.array_equal(mine.B, theirs.B)
    assert not tied.untie(np.zeros((1, tied.dim))).any()


def test_tied_space_depends_on_its_seed_alone(space):
    one, again, other = (TiedSpace(space, tie=5, seed=seed) for seed in (1, 1, 2))
    vector = random_vector(one)[None]
    assert np.array_equal(one.untie(vector), again.untie(vector))
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint
    assert not np.array_equal(one.untie(vector), other.untie(vector))


def test_any_space_can_be_tied_by_name(tiny):
    tied = esalign.make_space("svd-lora", adapter=str(tiny.adapter), tie=4)
    start = esalign.SvdLora.from_pretrained(tiny.adapter)
    assert tied.dim == 4
    for mine, theirs in zip(tied.fold(np.zeros(4)).modules, start.adapter.modules, strict=True):
        assert np.array_equal(mine.B, theirs.B)


# --- engines


@pytest.fixture(scope="module", params=["base-svd", "tied"])
def subject(request, tiny, space):
    chosen = space if request.param == "base-svd" else TiedSpace(space, tie=6)
    make = partial(TorchBackend, tiny.model, chosen, device="cpu")
    subject = Subject(make, model=tiny.model, space=chosen, spread=1.2)
    yield subject
    subject.backend.close()


@pytest.mark.slow
@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_torch_keeps_the_contract_in_the_space(subject, claim):
    claim(subject)


# --- decomposition


@pytest.mark.slow
def test_large_matrices_are_decomposed_near_enough():
    rng = np.random.default_rng(0)
    spectrum = 10.0 * np.arange(1, 1101) ** -0.6  # slow decay, as weights have
    left, right = (np.linalg.qr(rng.standard_normal((size, 1100)))[0] for size in (1300, 1100))
    W = ((left * spectrum) @ right.T).astype(np.float32)
    U, S, Vt = top_svd(W, 8)
    np.testing.assert_allclose(S, spectrum[:8], rtol=1e-4)
    np.testing.assert_allclose(U.T @ U, np.eye(8), atol=1e-5)
    best = (left[:, :8] * spectrum[:8]) @ right[:, :8].T
    assert np.linalg.norm((U * S) @ Vt - best) < 0.02 * np.linalg.norm(best)


def test_an_equal_matrix_is_decomposed_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ESALIGN_CACHE", "~/cache")
    matrix = np.random.default_rng(1).standard_normal((20, 12)).astype(np.float32)
    (first, _), calls = cached_svd(matrix, 3), []
    monkeypatch.setattr(decompose, "top_svd", lambda *given: calls.append(given) or top_svd(*given))
    (second, _) = cached_svd(matrix, 3)
    assert not calls
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    [file] = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])  # cut short, as a full disk leaves it
    (third, _) = cached_svd(matrix, 3)
    assert len(calls) == 1
    assert all(np.array_equal(a, b) for a, b in zip(first, third, strict=True))


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"adapter": "x"}, ConfigError, "starts from the model alone, got the adapter 'x'"),
        ({"model": None}, ConfigError, "needs the model"),
        ({"model": "no/such/model"}, BackendError, "neither a folder with"),
        ({"targets": ["q_prj"]}, ConfigError, "no linear layer 'q_prj', did you mean 'q_proj'"),
        ({"targets": []}, ConfigError, "no layer to search in is left; name targets, of down_proj, .*, all-linear"),
        ({"targets": "all_linear"}, ConfigError, "no linear layer 'all_linear', did you mean 'all-linear'"),
        ({"model": __file__}, BackendError, "a GGUF file is known by its ending .gguf"),
        ({"layers": [5]}, ConfigError, "no block 5 .*blocks: 0 to 1"),
        ({"rank": 33}, AdapterError, "k_proj is 32 x 64, so it has no 33 directions: .* or leave it out of targets"),
        ({"rank": 0}, ConfigError, "rank is 0"),
        ({"skip": -1}, ConfigError, "skip is -1"),
        ({"rank": "eight"}, ConfigError, "option 'rank' is 'eight'"),
        ({"ranks": 2}, ConfigError, "no option 'ranks', did you mean 'rank'"),
        ({"tie": 999}, ConfigError, "tie is 999, expected 1 to 64"),
        ({"tie": "13"}, ConfigError, "option 'tie' is '13', input should be a valid integer"),
        ({"tie": 4, "tie_seed": -1}, ConfigError, "tie_seed is -1, expected at least 0"),
        ({"tie_over": "layers"}, ConfigError, "mean nothing without tie"),
        ({"tie_seed": 3}, ConfigError, "mean nothing without tie"),
        ({"tie": 0}, ConfigError, "tie is 0, expected 1 to 64"),
        ({"tie": 9, "tie_over": "layers"}, ConfigError, "tie is 9, expected 1 to 8, as the smallest layer"),
        ({"tie": 4, "tie_over": "layer"}, ConfigError, "tie_over is 'layer', expected 'all' or 'layers'"),
    ],
)
def test_bad_input_is_one_clear_line(tiny, options, error, message):
    with pytest.raises(error, match=message) as caught:
        esalign.make_space("base-svd", **{"model": str(tiny.model), **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.fill_(float("nan")), "o_proj of the model holds numbers that are not finite"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "as torch.float8_e4m3fn .* expected a plain matrix"),
    ],
    ids=["nan", "float8"],
)
def test_weights_that_are_no_numbers_or_have_scales_elsewhere_are_refused(tiny, tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    name, tensors = "model.layers.0.self_attn.o_proj.weight", load_file(tiny.model / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny.model / "config.json").read_text())
    save_file({**tensors, name: change(tensors[name])}, tmp_path / "model.safetensors")
    with pytest.raises(BackendError, match=message):
        BaseSvd(str(tmp_path))


def test_a_model_without_plain_weights_is_refused(tiny, tmp_path):
    (tmp_path / "config.json").write_text((tiny.model / "config.json").read_text())
    with pytest.raises(BackendError, match="has no safetensors weights"):
        BaseSvd(str(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(BackendError, match=r"is a folder of GGUF files: name the file, such as model.path='.*a.gguf'"):
        BaseSvd(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    (tmp_path / "model.safetensors").write_bytes((tiny.model / "model.safetensors").read_bytes())
    with pytest.raises(BackendError, match="cannot be read: ValueError"):
        BaseSvd(str(tmp_path))


def test_attention_is_found_by_name_in_other_families():
    names = ["gpt_neox.layers.0.attention.dense", "gpt_neox.layers.0.mlp.dense_h_to_4h", "h.1.self_attention.qkv"]
    assert choose_layers(names, None, None, label="m") == [names[0], names[2]]
