"""Adapter folders: what is read is what transformers + peft would read, and the rest is refused or mended aloud."""

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from esalign.errors import AdapterError, EsalignWarning
from esalign.space.adapter import Adapter, LoraModule, read_adapter, write_adapter
from esalign.space.adapter_config import HARMLESS_STARTS, KEPT, UNSUPPORTED

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.10.self_attn.k_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj", "k_proj"]}


def make_adapter(**config: object) -> Adapter:
    rng = np.random.default_rng(0)
    modules = tuple(
        LoraModule(name, *(rng.standard_normal(shape).astype(np.float32) for shape in ((4, 12), (16, 4))), 2.0)
        for name in (Q, K)
    )
    return Adapter({**CONFIG, **config}, modules)


def edited(folder, **changes):
    """Write an adapter with a changed configuration."""
    file = write_adapter(make_adapter(), folder) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def renamed(folder, rename):
    """Write an adapter whose tensors are renamed."""
    file = write_adapter(make_adapter(), folder) / "adapter_model.safetensors"
    save_file({rename(name): values for name, values in load_file(file).items()}, file)
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"kasa_config": {}, "use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"monteclora_config": {"buffer_size": 2}}, "MonteCLoRA"),
        ({"alora_invocation_tokens": []}, "activated LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target parameters"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"init_lora_weights": "olora"}, "changes the base model"),
        ({"init_lora_weights": "OLoRA"}, "changes the base model"),
        ({"init_lora_weights": "corda"}, "changes the base model"),
        ({"init_lora_weights": "loftq"}, "changes the base model"),
        ({"init_lora_weights": "lora_ga"}, "changes the base model"),
        ({"init_lora_weights": "of-next-year"}, "not known not to"),
        ({"init_lora_weights": 1.5}, "not known not to"),
        ({"r": 5}, "rank 5"),
        ({"r": True}, "whole number"),
        ({"r": None}, "whole number"),
        ({"r": 4.0}, "whole number"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern"),
        ({"rank_pattern": [4]}, "an object"),
        ({"rank_pattern": {"(": 4}}, "cannot be read"),
        ({"alpha_pattern": {"*": 4}}, "cannot be read"),
        ({"alpha_pattern": {"q_proj": None}}, "lora_alpha None"),
        *(({"lora_alpha": alpha}, "1e-06 to 1e+06") for alpha in (0, float("nan"), 10**400, 1e38, -1e7, 1e-300)),
        ({"lora_alpha": "16"}, "lora_alpha '16'"),
        ({"target_modules": None}, "target_modules None"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["q_proj", 3]}, "target_modules"),
        ({"target_modules": ["q_proj"]}, "do not name"),
        ({"target_modules": "q_proj"}, "do not name"),
        ({"target_modules": "("}, "cannot be read"),
        ({"exclude_modules": ["k_proj"]}, "do not name"),
        ({"exclude_modules": r".*layers\.10.*"}, "do not name"),
        ({"layers_to_transform": [0]}, "do not name"),
        ({"layers_to_transform": 0}, "do not name"),
        ({"layers_to_transform": ["0"]}, "layer numbers"),
        ({"layers_to_transform": [0, 10], "layers_pattern": "h"}, "do not name"),
        ({"layers_pattern": ["layers"]}, "without layers_to_transform"),
        ({"layers_to_transform": [0], "target_modules": ".*_proj"}, "use a list"),
    ],
)
def test_a_configuration_that_peft_reads_otherwise_is_refused_by_name(tmp_path, changes, named):
    with pytest.raises(AdapterError, match=re.escape(named)):
        read_adapter(edited(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|k)_proj"},
        {"target_modules": [Q, "k_proj"]},
        {"layers_to_transform": [0, 10]},
        {"layers_to_transform": [0, 10], "layers_pattern": "layers"},
        {"layers_to_transform": []},
        {"exclude_modules": ["v_proj"]},
        {"rank_pattern": None, "alpha_pattern": None},
        {"lora_alpha": 8.0},
        {"task_type": "CAUSAL_LM"},
        {"eva_config": {"key": "of another version"}},
        *({"init_lora_weights": start} for start in (True, False, None, *HARMLESS_STARTS)),
    ],
)
def test_a_configuration_that_means_the_same_is_read(tmp_path, changes):
    for before, after in zip(make_adapter().modules, read_adapter(edited(tmp_path, **changes)).modules, strict=True):
        assert (before.name, before.scaling) == (after.name, after.scaling)
        assert np.array_equal(before.A, after.A)
        assert np.array_equal(before.B, after.B)


@pytest.mark.slow
def test_every_start_and_variant_of_the_installed_peft_is_known():
    """A start that changes the base model does so by assigning a base layer's weight; a variant is marked as one."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import LoraLayer

    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants - set(UNSUPPORTED) == {"velora_config"}  # which changes how gradients are kept, and no update
    source = inspect.getsource(LoraLayer.update_layer)
    starts = set(re.findall(r'init_lora_weights(?:\.lower\(\))? == "(\w+)"|startswith\("(\w+)"\)', source))
    changing = set()
    for start in {first or second for first, second in starts}:
        body = inspect.getsource(getattr(LoraLayer, f"{start}_init", LoraLayer.reset_lora_parameters))
        if re.search(r"base_layer(\(\))?\.weight\.data (-)?=|base_layer\.weight = ", body):
            changing.add(start)
    assert changing == {"pissa", "olora", "corda", "loftq", "lora_ga"}
    assert not changing & set(HARMLESS_STARTS)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
        lambda name: name.replace(".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."),
        lambda name: name.replace(".lora_", "._fsdp_wrapped_module.lora_"),
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"base_model.model.base_model.model._orig_mod.{name}",
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".policy.weight"),
    ],
)
def test_names_that_a_wrapper_has_changed_are_mended_and_it_is_said(tmp_path, rename):
    with pytest.warns(EsalignWarning, match="4 tensors under names that peft would not find"):
        read = read_adapter(renamed(tmp_path / "odd", rename))
    for before, after in zip(make_adapter().modules, read.modules, strict=True):
        assert (before.name, before.scaling) == (after.name, after.scaling)
        assert np.array_equal(before.A, after.A)
        assert np.array_equal(before.B, after.B)
    again = write_adapter(read, tmp_path / "mended")
    assert set(load_file(again / "adapter_model.safetensors")) == {
        f"base_model.model.{name}.lora_{factor}.weight" for name in (Q, K) for factor in "AB"
    }


def test_names_that_could_mean_two_adapters_are_refused(tmp_path):
    file = write_adapter(make_adapter(), tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, **{f"_orig_mod.{name}": values for name, values in tensors.items()}}, file)
    with pytest.raises(AdapterError, match="two adapters"):
        read_adapter(tmp_path)
    named = {name.replace(".weight", f".{'a' if '.0.' in name else 'b'}.weight"): v for name, v in tensors.items()}
    save_file(named, file)
    with pytest.raises(AdapterError, match="two adapters"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "layer",
    ["mlp.experts.3.gate_proj", "block_sparse_moe.experts.0.w1", "mlp.experts", "mlp.experts.base_layer"],
)
def test_experts_are_refused_by_the_name_of_the_layer(tmp_path, layer):
    folder = renamed(tmp_path, lambda name: name.replace("self_attn.q_proj", layer))
    with pytest.raises(AdapterError, match=rf"adapts the expert 'model.layers.0.{layer}'.*attention"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda A, B: (A[:0], B[:, :0]), "expected \\(rank, in\\)"),
        (lambda A, B: (A[:, :0], B), "expected \\(rank, in\\)"),
        (lambda A, B: (A, B[:0]), "expected \\(rank, in\\)"),
        (lambda A, B: (A[None], B), "expected \\(rank, in\\)"),
        (lambda A, B: (A[:3], B), "expected \\(rank, in\\)"),
        (lambda A, B: (A * np.inf, B), "not finite"),
        (lambda A, B: (A.astype(np.int32), B), "type I32"),
    ],
)
def test_factors_that_are_no_factors_are_refused(tmp_path, change, named):
    file = write_adapter(make_adapter(), tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    names = [f"base_model.model.{Q}.lora_{factor}.weight" for factor in "AB"]
    changed = change(*(tensors[name] for name in names))
    save_file({**tensors, **{name: np.ascontiguousarray(one) for name, one in zip(names, changed, strict=True)}}, file)
    with pytest.raises(AdapterError, match=named):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe{}", b'{"r": ' + b"9" * 5000 + b"}", b"[]", b"", b"null"]
)
def test_a_broken_configuration_is_one_line(tmp_path, content):
    folder = write_adapter(make_adapter(), tmp_path)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_config.json' (is not valid JSON|holds)"):
        read_adapter(folder)


def test_layers_named_with_odd_digits_are_sorted_without_a_traceback(tmp_path):
    read = read_adapter(renamed(tmp_path, lambda name: name.replace("layers.0", "layers.²")))
    assert {module.name for module in read.modules} == {Q.replace("0", "²"), K}


def test_what_is_written_has_no_null_where_peft_takes_none(tmp_path):
    config = json.loads((write_adapter(make_adapter(alpha_pattern=None), tmp_path) / "adapter_config.json").read_text())
    assert "alpha_pattern" not in config


def test_what_is_written_holds_only_keys_that_every_peft_reads(tmp_path):
    odd = make_adapter(init_lora_weights="eva", eva_config={"nonsense": 1}, of_the_future=True, task_type="CAUSAL_LM")
    config = json.loads((write_adapter(odd, tmp_path) / "adapter_config.json").read_text())
    assert set(config) <= {*KEPT, "inference_mode", "init_lora_weights"}
    assert config["init_lora_weights"] is True
    assert config["task_type"] == "CAUSAL_LM"


def test_alpha_pattern_and_rslora_give_the_scaling_of_peft(tmp_path):
    folder = edited(tmp_path, alpha_pattern={"q_proj": 12}, use_rslora=True)
    scalings = {module.name.rsplit(".", 1)[1]: module.scaling for module in read_adapter(folder).modules}
    assert scalings == {"k_proj": 8 / 2, "q_proj": 12 / 2}


def test_broken_files_are_refused_with_one_clear_line(tmp_path):
    folder = write_adapter(make_adapter(), tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AdapterError, match="is broken"):
        read_adapter(folder)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model.safetensors"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON"):
        read_adapter(folder)
    with pytest.raises(AdapterError, match="is neither a folder with"):
        read_adapter(tmp_path / "nowhere")


def test_bfloat16_adapters_are_widened(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = write_adapter(make_adapter(), tmp_path)
    file = folder / "adapter_model.safetensors"
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in load_torch(file).items()}
    save_torch(narrow, file)
    for module in read_adapter(folder).modules:
        key = f"base_model.model.{module.name}.lora_A.weight"
        assert np.array_equal(module.A, narrow[key].float().numpy())


def test_the_first_of_two_patterns_that_match_wins_after_writing_too(tmp_path):
    adapter = make_adapter(alpha_pattern={"q_proj": 2, ".*": 8})
    written = read_adapter(write_adapter(adapter, tmp_path / "one"))
    assert {module.name: module.scaling for module in written.modules} == {Q: 0.5, K: 2.0}
    again = read_adapter(write_adapter(written, tmp_path / "two"))
    assert {module.name: module.scaling for module in again.modules} == {Q: 0.5, K: 2.0}
