"""Models are the same, however torch finds their shapes."""

import pytest
import torch
from models import make_config, make_model
from transformers import AutoModelForCausalLM

from esalign.space.skeleton import ShapesByCPU, make_skeleton

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0}
MODELS = {
    **{name: (name, {}) for name in ("qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "deepseek_v3", "qwen2_moe")},
    **{
        parameters["rope_type"]: ("llama", {"rope_parameters": {**parameters, "original_max_position_embeddings": 64}})
        for parameters in (LLAMA3, YARN, LONG)
    },
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_as_transformers_loads_it(tmp_path, name):
    architecture, overrides = MODELS[name]
    make_model(tmp_path, architecture, **overrides)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    with ShapesByCPU():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = dict(plain.named_parameters()) | dict(plain.named_buffers())
    got = dict(ours.named_parameters()) | dict(ours.named_buffers())
    assert {key: tensor.device.type for key, tensor in got.items()} == dict.fromkeys(expected, "cpu")
    assert [key for key in expected if not torch.equal(got[key], expected[key])] == []
    ids = torch.arange(3, 103)[None]
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("name", MODELS)
def test_a_skeleton_has_the_shapes_that_torch_finds_and_no_values(name):
    architecture, overrides = MODELS[name]
    config = make_config(architecture, **overrides)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    skeleton = make_skeleton(config)

    def describe(model):
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return {key: (tensor.shape, tensor.dtype, tensor.device.type) for key, tensor in tensors.items()}

    assert describe(skeleton) == describe(plain)
    assert {device for _, _, device in describe(skeleton).values()} == {"meta"}


def test_on_the_meta_device_no_value_can_be_read():
    with ShapesByCPU(), torch.device("meta"):
        numbers = torch.arange(4)
        half = numbers / 2
        assert (half.is_meta, half.dtype, half.shape) == (True, torch.float32, (4,))
        assert torch.empty_like(half, device="cpu").device.type == "cpu"
        for read in (half.tolist, half[0].item, lambda: half.to("cpu"), lambda: bool(half.sum() > 0), half.nonzero):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read()


def test_what_is_not_on_the_meta_device_is_computed_as_ever():
    with ShapesByCPU():
        numbers = torch.arange(4)
        assert (numbers / 2).tolist() == [0.0, 0.5, 1.0, 1.5]
        assert torch.empty_like(numbers).shape == (4,)
        torch.manual_seed(0)
        assert torch.zeros(3).normal_().count_nonzero() == 3
        assert torch.arange(2, device="meta").is_meta
