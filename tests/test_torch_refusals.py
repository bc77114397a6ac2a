"""What the torch engine refuses, in one line: models, options, prompts, adapters."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from esalign_torch import TorchBackend
from models import make_model, make_tiny
from transformers import AutoModelForCausalLM

from esalign.errors import BackendError
from esalign.space import Adapter, LoraModule, SvdLora, write_adapter
from esalign.testing import Subject
from esalign.types import Sampling


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    tiny = make_tiny(tmp_path_factory.mktemp("llama"))
    space = SvdLora.from_pretrained(tiny.adapter)
    return Subject(partial(TorchBackend, tiny.model, space, device="cpu"), model=tiny.model, space=space)


@pytest.fixture
def copied(llama, tmp_path):
    """A copy of the model's folder, to be spoilt."""
    return shutil.copytree(llama.model, tmp_path / "model")


@pytest.mark.parametrize("prompt", [3, [1.5], ["text"], [None]], ids=repr)
def test_prompts_of_no_known_kind_are_errors(llama, prompt):
    with pytest.raises(BackendError, match="expected text, chat messages or token ids"):
        llama.backend.encode(prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype is 'float8', expected one of float32"),
        ({"quantization": "int3"}, "quantization is 'int3', expected one of int8, int4"),
        ({"device": "abacus"}, "device is 'abacus', expected 'auto'"),
        *(({"device": name}, f"device is '{name}', expected .*no support") for name in ("mps", "xpu:1", "meta", "hpu")),
        ({"device": "cuda:99"}, "device is 'cuda:99', but this machine has"),
        ({"memory_gb": 0}, "memory_gb is 0, expected a number above 0"),
        ({"max_rows": -1}, "max_rows is -1, expected a whole number of at least 1"),
        ({"attn_implementation": "psychic"}, "cannot be loaded"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_bad_options_are_errors(llama, options, message):
    with pytest.raises(BackendError, match=message):
        TorchBackend(llama.model, llama.space, **({"device": "cpu"} | options))


def test_unknown_options_are_errors(llama):
    with pytest.raises(TypeError, match="batch_size"):
        TorchBackend(llama.model, llama.space, batch_size=3)


def test_models_that_cannot_be_loaded_are_errors_in_one_line(llama, copied, tmp_path):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    for spoil, message in (
        (lambda: weights.write_bytes(whole[:1000]), "cannot be loaded"),
        (weights.unlink, "cannot be loaded"),
        (lambda: (copied / "config.json").write_text("{"), "cannot be loaded"),
        (lambda: shutil.rmtree(copied), "cannot be loaded: there is no such file or folder"),
    ):
        spoil()
        with pytest.raises(BackendError, match=message) as caught:
            TorchBackend(copied, llama.space, device="cpu")
        assert "\n" not in str(caught.value)


def test_a_checkpoint_without_some_weights_is_an_error(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"no weights for 'model.layers.1.mlp.up_proj.weight'"):
        TorchBackend(copied, device="cpu")


def test_recurrent_models_are_refused_by_the_kind_of_their_layers(copied):
    config = json.loads((copied / "config.json").read_text())
    config["layer_types"] = ["linear_attention", "full_attention"]
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendError, match="layers of type 'linear_attention', which backend 'torch' does not support"):
        TorchBackend(copied, device="cpu")


@pytest.mark.parametrize(
    ("architecture", "named"),
    [
        ("rwkv", r"is recurrent \(RwkvForCausalLM\)"),
        ("recurrent_gemma", r"is recurrent \(RecurrentGemmaForCausalLM\)"),
        ("xlstm", r"is recurrent \(xLSTMForCausalLM\)"),
        ("mamba", "layers of type"),
        ("jamba", "layers of type"),
    ],
)
def test_recurrent_architectures_are_refused_in_one_line(tmp_path, architecture, named):
    model = make_model(tmp_path / "model", architecture)
    with pytest.raises(BackendError, match=f"{named}.*backend 'torch' does not support"):
        TorchBackend(model, device="cpu")


def test_layers_of_experts_that_cannot_be_adapted_are_named(tmp_path):
    shared = craft_adapter(tmp_path / "a", make_model(tmp_path / "deepseek", "deepseek_v3"), "shared_experts.up_proj")
    with pytest.raises(BackendError, match=r"'model.layers.1.mlp.shared_experts.up_proj' of .* peft takes for a part"):
        TorchBackend(tmp_path / "deepseek", SvdLora.from_pretrained(shared), device="cpu")
    shared = craft_adapter(tmp_path / "b", make_model(tmp_path / "qwen", "qwen2_moe"), "shared_expert.up_proj")
    with pytest.raises(BackendError, match=r"0.mlp.shared_expert.up_proj' gets a tensor .* or of space.targets"):
        TorchBackend(tmp_path / "qwen", SvdLora.from_pretrained(shared), device="cpu")


def craft_adapter(folder, model, target):
    """Write a random adapter of all layers of a name, which peft itself may not be able to make."""
    rng = np.random.default_rng(0)
    modules = [
        LoraModule(name, *(rng.standard_normal(shape).astype(np.float32) for shape in ((2, wide), (high, 2))), 2.0)
        for name, layer in AutoModelForCausalLM.from_pretrained(model).named_modules()
        if name.endswith(target)
        for high, wide in [layer.weight.shape]
    ]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [target]}
    return write_adapter(Adapter(config, tuple(modules)), folder)


def test_an_adapter_of_another_model_is_refused_by_the_first_mismatch(llama, tmp_path):
    for changes, message in (
        ({"num_hidden_layers": 3}, r"adapts 'model.layers.2.self_attn.k_proj', which model .* does not have"),
        ({"hidden_size": 32}, r"'model.layers.0.self_attn.k_proj' map 32 to 16 features, but .* maps 64 to 32"),
    ):
        other = make_tiny(tmp_path / next(iter(changes)), **changes)
        with pytest.raises(BackendError, match=message):
            TorchBackend(llama.model, SvdLora.from_pretrained(other.adapter), device="cpu")


def test_int4_refuses_widths_that_are_no_multiple_of_its_groups(tmp_path):
    model = make_model(tmp_path, hidden_size=48, num_attention_heads=4, head_dim=16)
    with pytest.raises(BackendError, match=r"multiple of 32, but '.*q_proj' of model .* has 48: use 'int8'"):
        TorchBackend(model, device="cpu", quantization="int4")


def test_what_exceeds_the_context_says_by_how_much(llama):
    with pytest.raises(
        BackendError, match=r"prompt 1 has 250 tokens and its completion may have 24, but .* context of 256"
    ):
        llama.backend.generate(llama.candidates, ["3", [5] * 250], Sampling(max_tokens=24))


def test_support_of_a_wrong_shape_is_an_error(llama):
    for support in (np.zeros((3, 2), dtype=int), np.zeros(2, dtype=int), np.zeros((2, 2)), np.full((2, 2), 999)):
        with pytest.raises(BackendError, match="support 0"):
            llama.backend.score(llama.candidates, [((3, 4), (5, 6))], support=[support])


def test_a_closed_engine_says_so(llama):
    backend = llama.make()
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.encode("3")
