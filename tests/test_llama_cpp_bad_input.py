"""What the llama.cpp engine says of what it cannot use: one clear line each."""

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import LlamaCppBackend, convert_model, lora, options, quantize_model, read_gguf_adapter
from esalign_llama_cpp.weights import GgufWeights
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from llama_cpp_lab import pretend_smollm3
from models import make_model, make_tiny

import esalign
from esalign.errors import AdapterError, BackendError, ConfigError, EsalignError
from esalign.space import SvdLora
from esalign.space.adapter import Adapter, LoraModule
from esalign.types import Sampling

GREEDY = Sampling(max_tokens=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("bad"), "llama")


@pytest.fixture(scope="module")
def space(tiny):
    return SvdLora.from_pretrained(tiny.adapter)


@pytest.fixture(scope="module")
def gguf(tiny, tmp_path_factory):
    return convert_model(tiny.model, tmp_path_factory.mktemp("gguf") / "model.gguf")


def refused(call, *parts, error=BackendError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def start(model, space=None, **options):
    LlamaCppBackend(model, space, **({"threads": 1} | options)).close()


@pytest.mark.parametrize(
    ("damage", "say"),
    [
        (lambda raw: raw[: len(raw) // 2], "not within the file bounds"),
        (lambda raw: raw[:-1], "not within the file bounds"),
        (lambda raw: raw[:3000], "failed to read key-value pairs"),
        (lambda raw: raw[:4] + b"\xff" * 100, "is version 4294967295"),
        (
            lambda raw: raw.replace(b"llama.block_count", b"llama.block_cuont"),
            "key not found in model: llama.block_count",
        ),
        (lambda raw: b"<html>404</html>", "not a GGUF file (it starts with b'<htm', expected b'GGUF')"),
        (lambda raw: b"", "not a GGUF file"),
    ],
)
def test_corrupt_files_are_refused_with_llama_cpps_reason(gguf, tmp_path, damage, say):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(gguf.read_bytes()))
    refused(lambda: start(broken), "broken.gguf", say)


def split(gguf, target, tensors):
    """Write a GGUF file again, in parts of so many tensors."""
    reader = GGUFReader(gguf)
    writer = GGUFWriter(target, "llama", split_max_tensors=tensors)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = {"sub_type": field.types[-1]} if field.types[0] == GGUFValueType.ARRAY else {}
            writer.add_key_value(key, field.contents(), field.types[0], **kinds)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.stem}-*-of-*.gguf"))


def test_the_weights_of_a_split_file_are_those_of_the_whole(gguf, tmp_path):
    first, *others = split(gguf, tmp_path / "model.gguf", tensors=8)
    assert others
    whole, parts = GgufWeights(gguf), GgufWeights(first)
    assert set(parts.names) == set(whole.names)
    assert all(np.array_equal(parts.read(name), whole.read(name)) for name in whole.names)
    refused(lambda: GgufWeights(others[0]), "parts of a model: name the first, which ends in -00001-of-")
    others[-1].unlink()
    refused(lambda: GgufWeights(first), "cannot be read: No such file", error=AdapterError)


def test_a_missing_file_is_refused(tmp_path):
    refused(lambda: start(tmp_path / "none.gguf"), "none.gguf", "No such file")
    refused(lambda: start(tmp_path / "nowhere"), "neither a folder with")


def test_an_architecture_that_llama_cpp_does_not_know_is_refused(gguf, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0alpha", 1))
    refused(
        lambda: start(other),
        "unknown model architecture: 'alpha'",
        "expected one of llama, qwen2, qwen3, gemma2, gemma3, phi3",
    )


def test_an_architecture_that_only_llama_cpp_knows_is_refused(tiny, tmp_path, monkeypatch):
    pretend_smollm3(monkeypatch)
    other = convert_model(tiny.model, tmp_path / "smollm3.gguf")
    refused(
        lambda: start(other), "is of architecture 'smollm3', expected one of llama, qwen2, qwen3, gemma2, gemma3, phi3"
    )


@pytest.mark.parametrize(
    ("overrides", "say", "method"),
    [
        ({"hidden_size": 96, "num_attention_heads": 4}, "incorrect shape", "files"),
        ({"num_hidden_layers": 3}, "does not exist in base model", "auto"),
        ({"num_key_value_heads": 4}, "incorrect shape", "auto"),
    ],
)
def test_an_adapter_of_another_model_is_refused(gguf, tmp_path, overrides, say, method):
    other = make_tiny(tmp_path, "llama", **overrides)
    space = SvdLora.from_pretrained(other.adapter)
    refused(lambda: start(gguf, space, method=method), say, "use the model that the adapter was trained on")


def test_an_adapter_whose_rows_do_not_fit_the_heads_is_refused(gguf, space):
    module = space.adapter.modules[0]
    odd = LoraModule("model.layers.0.self_attn.q_proj", module.A, np.ones((60, 4), np.float32) * module.B[:1], 1.0)
    refused(lambda: start(gguf, SvdLora(Adapter({}, (odd,)))), "60 outputs", "4 heads")


def test_an_adapter_with_unknown_layers_is_refused(gguf, space):
    module = space.adapter.modules[0]
    other = LoraModule("transformer.h.0.attn.c_attn", module.A, module.B, 1.0)
    refused(
        lambda: start(gguf, SvdLora(Adapter({}, (other,)))),
        "'transformer.h.0.attn.c_attn'",
        "expected linear layers of a model of architecture",
        error=AdapterError,
    )


def test_a_context_too_small_is_refused_and_says_what_to_do(tiny, space):
    zero = np.zeros((1, space.dim))
    backend = LlamaCppBackend(tiny.model, space, threads=1, context=16)
    refused(
        lambda: backend.generate(zero, [[5], [5] * 13], GREEDY),
        "prompt 1 has 13 tokens",
        "a context of 16",
        "'context'",
    )
    refused(lambda: backend.score(zero, [([5] * 13, [5] * 4)]), "sequence 0 has 13 tokens", "may have 4")
    assert len(backend.generate(zero, [[5] * 12], GREEDY)[0]) == 1
    backend.close()
    backend = LlamaCppBackend(tiny.model, space, threads=1)
    refused(
        lambda: backend.generate(zero, [[5] * 253], GREEDY),
        "a context of 256",
        "shorten the prompt or lower max_tokens",
    )
    backend.close()


@pytest.mark.parametrize(
    ("choice", "say"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', expected one of auto, float32"),
        ({"method": "magic"}, "method is 'magic', expected one of auto, in-place, files"),
        ({"quantization": "q2"}, "quantization is 'q2', expected one of f32"),
        ({"kv_type": "q4"}, "kv_type is 'q4', expected one of f32, f16, q8_0"),
        ({"kv_type": "q8_0", "flash_attention": False}, "needs flash_attention"),
        ({"threads": 0}, "threads is 0, expected a whole number of at least 1"),
        ({"context": -1}, "context is -1"),
        ({"sequences": 2.5}, "sequences is 2.5"),
        ({"sequences": 256}, "expected at most 255"),
        ({"sequences": 8, "batch": 8}, "expected at most 7"),
        ({"batch": 1}, "expected at most 0"),
        ({"kv_memory_gb": 0}, "kv_memory_gb is 0"),
        ({"device": "tpu"}, "device is 'tpu', expected 'auto', 'cpu', 'cuda'"),
        ({"device": "cpu:1"}, "device is 'cpu:1'"),
        ({"tokenizer": "/nowhere/at/all"}, "the tokenizer '/nowhere/at/all' cannot be loaded"),
    ],
)
def test_options_out_of_range_are_refused(tiny, choice, say):
    refused(lambda: start(tiny.model, **choice), say)


def test_unknown_options_are_refused(tiny):
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        esalign.load_backend("llama-cpp", model=str(tiny.model), space=None, thread=1)
    with pytest.raises(TypeError):
        LlamaCppBackend(tiny.model, None, thread=1)


def test_a_gpu_where_llama_cpp_has_none_is_refused():
    with pytest.raises(BackendError, match="built without GPUs"):
        options.find_device("cuda", None, gpus=False)
    assert options.find_device("auto", None, gpus=False) == (0, None)
    assert options.find_device("auto", None, gpus=True) == (-1, None)
    assert options.find_device("cuda:1", 7, gpus=True) == (7, 1)
    assert options.find_device("cpu", None, gpus=True) == (0, None)


def test_quantisation_of_rows_that_do_not_divide_is_refused(tiny, gguf, tmp_path):
    refused(lambda: start(tiny.model, quantization="q4_k_m"), "divide by 256", "hidden_size is 64", "q8_0 or q4_0")
    odd = make_model(tmp_path, "llama", intermediate_size=90)
    refused(lambda: start(odd, quantization="q8_0"), "divide by 32", "intermediate_size is 90", "use f16")
    refused(lambda: start(gguf, quantization="q8_0"), "is a GGUF file, which has its own")
    refused(lambda: quantize_model(gguf, tmp_path / "out.gguf", "q3"), "quantization is 'q3'")
    refused(lambda: quantize_model(gguf, tmp_path / "out.gguf", "q4_k_m"), "ncols 64 not divisible by 256")
    assert not (tmp_path / "out.gguf").exists()
    refused(lambda: quantize_model(tmp_path / "none.gguf", tmp_path / "out.gguf", "q8_0"), "cannot quantise")


def edit(folder, target, name="config.json", **changes):
    shutil.copytree(folder, target)
    file = target / name
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return target


@pytest.mark.parametrize(
    ("changes", "say"),
    [
        *(
            (
                {"model_type": kind},
                f"is of type {kind!r}; backend 'llama-cpp' runs llama, mistral, qwen2, qwen3, gemma2,",
            )
            for kind in ("gpt2", "gemma", "gemma3", "qwen2_moe", "mixtral", "phimoe", None)
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "rotary embedding of type 'longrope' (known: default, linear, yarn, llama3)",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 (expected 1)"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "attention_factor": 0.5}},
            "YaRN with attention_factor 0.5",
        ),
        ({"num_attention_heads": ...}, "config.json' is not complete: KeyError 'num_attention_heads'"),
        ({"num_hidden_layers": 3}, "no weights for blk.2."),
        ({"num_hidden_layers": 1}, "'model.layers.1."),
        ({"vocab_size": 300}, "ids up to 319, but the model's vocabulary has 300"),
    ],
)
def test_models_that_cannot_be_converted_are_refused(tiny, tmp_path, changes, say):
    folder = edit(tiny.model, tmp_path / "model", **changes)
    refused(lambda: start(folder), say)


@pytest.mark.parametrize(
    ("architecture", "changes", "say"),
    [
        ("gemma2", {"query_pre_attn_scalar": 64}, r"query_pre_attn_scalar 64 (expected 16), which esalign does not"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping None"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping None"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("gemma3", {"attention_bias": True}, "attention_bias True"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("gemma3", {"head_dim": ...}, "config.json' is not complete: KeyError 'head_dim'"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rotary embedding of type 'longrope'"),
    ],
)
def test_gemma_and_phi_that_cannot_be_converted_are_refused(tmp_path, architecture, changes, say):
    model = make_tiny(tmp_path, architecture, tie_word_embeddings=True, targets=("o_proj",)).model
    refused(lambda: start(edit(model, tmp_path / "edited", **changes)), say)


def test_where_every_block_sees_a_window_the_context_is_no_longer_than_it(tmp_path):
    for architecture in ("mistral", "phi3"):
        model = make_tiny(tmp_path / architecture, architecture, sliding_window=32, targets=("o_proj",)).model
        backend = LlamaCppBackend(model, None, threads=1)
        assert backend.context == 32
        backend.close()


def test_tokenizers_that_cannot_be_converted_are_refused(tiny, tmp_path):
    folder = edit(tiny.model, tmp_path / "b", "tokenizer.json", model={"type": "Unigram", "vocab": []})
    refused(lambda: start(folder), "of type 'Unigram'", "convert_hf_to_gguf.py")
    (folder / "tokenizer.json").unlink()
    refused(lambda: start(folder), "tokenizer.json' cannot be read")


def test_broken_weights_are_refused(tiny, tmp_path):
    folder = edit(tiny.model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(lambda: start(folder, dtype="float32"), "model.safetensors' is broken")
    refused(lambda: start(folder), "model.safetensors' is broken")
    weights.unlink()
    refused(lambda: start(folder, dtype="float32"), "no safetensors weights")
    (folder / "config.json").write_text("[]")
    refused(lambda: start(folder), "config.json' holds list, expected a JSON object")


def test_a_failed_conversion_leaves_nothing_in_the_cache(tiny, tmp_path):
    folder = edit(tiny.model, tmp_path / "model", num_hidden_layers=3)
    refused(lambda: start(folder, cache=tmp_path / "cache"), "no weights for")
    assert not list((tmp_path / "cache").iterdir())


def test_lora_files_that_cannot_be_used_are_refused(gguf, tmp_path):
    def read(path, model=gguf):
        return lambda: read_gguf_adapter(path, model)

    ones = np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)
    path = tmp_path / "a.gguf"
    refused(read(gguf), "not a LoRA adapter", error=AdapterError)
    refused(read(tmp_path / "none.gguf"), "cannot be read", error=AdapterError)
    path.write_bytes(b"GGUF" + bytes(100))
    refused(read(path), "no complete GGUF file", error=AdapterError)
    lora.write_lora_gguf(path, "gemma", {"blk.0.attn_q.weight": ones}, alpha=1.0)
    refused(read(path), "'gemma', expected one of llama", error=AdapterError)
    lora.write_lora_gguf(path, "qwen2", {"blk.0.attn_q.weight": ones}, alpha=1.0)
    refused(read(path), "'qwen2', but the model", "is of 'llama'", error=AdapterError)
    lora.write_lora_gguf(path, "llama", {"output.weight": ones}, alpha=1.0)
    refused(read(path), "'output', expected blk.<n>.", error=AdapterError)
    lora.write_lora_gguf(path, "llama", {}, alpha=1.0)
    refused(read(path), "no lora_a and lora_b", error=AdapterError)
    lora.write_lora_gguf(path, "llama", {"blk.0.attn_q.weight": (ones[0], np.ones((64, 3), np.float32))}, alpha=1.0)
    refused(read(path), "broken factors", error=AdapterError)
    raw = path.read_bytes()
    for cut in (200, len(raw) // 2, len(raw) - 8):
        path.write_bytes(raw[:cut])
        with pytest.raises(EsalignError):
            read_gguf_adapter(path, gguf)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    """In a process of its own, where the package cannot be imported."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        code = f"""
            import sys
            sys.modules[{module!r}] = None
            import esalign
            try:
                esalign.load_backend("llama-cpp", model="m.gguf", space=None)
            except esalign.EsalignError as error:
                print(type(error).__name__, error)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == (
            f"MissingPackageError backend 'llama-cpp' needs the package '{package}', which is not installed: "
            'pip install "esalign[llama-cpp]"'
        )


def test_importing_the_engine_loads_nothing_heavy():
    heavy = ("llama_cpp", "gguf", "torch", "transformers")
    code = f"import sys, esalign_llama_cpp; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
