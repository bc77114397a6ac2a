"""The search space: what a vector means, and what is refused."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import esalign
from esalign.errors import AdapterError, ConfigError
from esalign.space import SvdLora, open_svd_lora
from esalign.space.adapter import Adapter, LoraModule, read_adapter, write_adapter
from esalign.testing import SPACE_CLAIMS


def make_adapter(rank: int = 4, layers: int = 2, seed: int = 0, **config: object) -> Adapter:
    rng = np.random.default_rng(seed)
    modules = tuple(
        LoraModule(
            f"model.layers.{layer}.self_attn.{name}",
            rng.standard_normal((rank, 12)).astype(np.float32),
            rng.standard_normal((width, rank)).astype(np.float32) * 0.1,
            2.0,
        )
        for layer in range(layers)
        for name, width in (("k_proj", 8), ("q_proj", 16))
    )
    targets = {"target_modules": ["q_proj", "k_proj"]}
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **targets, **config}
    return Adapter(settings, modules)


# --- the contract ---


@pytest.fixture
def folder(tmp_path):
    """An adapter."""
    return str(write_adapter(make_adapter(), tmp_path / "adapter"))


@pytest.mark.parametrize("options", [{}, {"fraction": 0.5}, {"tie": 5}], ids=str)
@pytest.mark.parametrize("claim", SPACE_CLAIMS, ids=lambda claim: claim.__name__)
def test_svd_lora_keeps_the_contract(folder, claim, options):
    claim(functools.partial(esalign.make_space, "svd-lora", **options), adapter=folder)


@pytest.mark.parametrize("options", [{}, {"tie": 2, "tie_over": "layers"}, {"skip": 1}], ids=str)
@pytest.mark.parametrize("claim", SPACE_CLAIMS, ids=lambda claim: claim.__name__)
def test_base_svd_keeps_the_contract(claim, options):
    claim(functools.partial(esalign.make_space, "base-svd", rank=4, layers=[0], **options), model="embedded")


class Right(SvdLora):
    def __init__(self, *, model, adapter):
        super().__init__(read_adapter(adapter))


class TwoModulesOfOneName(Right):
    modules = property(lambda self: self.found * 2, lambda self, found: setattr(self, "found", found))


class AnotherStart(Right):
    def fold(self, vector):
        return super().fold(np.asarray(vector) + 1e-6)


class AnotherUpdate(Right):
    def fold(self, vector):
        return super().fold(np.asarray(vector) * 1.01)


class DoublePrecision(Right):
    def singular_values(self, candidates):
        return [(a.astype(np.float64), b) for a, b in super().singular_values(candidates)]


class ValuesOfTheCompany(Right):
    def singular_values(self, candidates):
        return [(a + a.mean(axis=0), b) for a, b in super().singular_values(candidates)]


class IdleCoordinate(Right):
    def singular_values(self, candidates):
        return super().singular_values(candidates * (np.arange(self.dim) > 0))


class AnotherFingerprint(Right):
    fingerprint = property(lambda self: str(id(self)), lambda self, _: None)


class SavesTheStart(Right):
    def save_pretrained(self, vector, folder):
        return super().save_pretrained(np.zeros_like(vector), folder)


class TakesAnyShape(Right):
    def fold(self, vector):
        return super().fold(np.resize(vector, self.dim))


class HandsOutItsState(Right):
    def fold(self, vector):
        return self.adapter


@pytest.mark.parametrize(
    ("claim", "mistaken"),
    [
        ("has_modules_that_engines_can_hold", TwoModulesOfOneName),
        ("starts_at_the_start", AnotherStart),
        ("folds_what_engines_compute", AnotherUpdate),
        ("gives_each_candidate_its_own_values", DoublePrecision),
        ("gives_each_candidate_its_own_values", ValuesOfTheCompany),
        ("uses_every_coordinate", IdleCoordinate),
        ("means_the_same_when_made_again", AnotherFingerprint),
        ("saves_what_it_folds", SavesTheStart),
        ("refuses_wrong_shapes", TakesAnyShape),
        ("keeps_its_state_to_itself", HandsOutItsState),
    ],
)
def test_the_contract_sees_each_mistake(folder, claim, mistaken):
    [seeing] = [one for one in SPACE_CLAIMS if one.__name__ == claim]
    seeing(Right, adapter=folder)
    with pytest.raises(AssertionError):
        seeing(mistaken, adapter=folder)


def test_the_contract_wants_no_update_at_the_start_of_a_bare_model(folder):
    [claim] = [one for one in SPACE_CLAIMS if one.__name__ == "starts_at_the_start"]
    with pytest.raises(AssertionError, match="is changed by the zero vector"):
        claim(lambda *, model, adapter: open_svd_lora(model=model, adapter=folder))


def test_a_space_without_its_adapter_says_what_to_give():
    with pytest.raises(ConfigError, match=r"model.adapter is not set, .* `esalign sft`, or .* space.name=base-svd"):
        esalign.make_space("svd-lora")


# --- vectors ---


def test_an_adapter_in_a_gguf_file_wants_its_model():
    with pytest.raises(AdapterError, match=r"'lora.gguf' is read by its model: give the model's file too"):
        esalign.make_space("svd-lora", adapter="lora.gguf")


def test_dim_is_modules_times_rank_times_two():
    assert SvdLora(make_adapter(rank=4)).dim == 4 * 4 * 2
    assert SvdLora(make_adapter(rank=4), fraction=0.6).dim == 4 * 2 * 2


@given(rank=st.integers(1, 8), fraction=st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None)
def test_count_is_the_fraction_rounded_down_per_factor(rank, fraction):
    if int(fraction * rank + 1e-9) == 0:
        with pytest.raises(AdapterError, match="rounds down to 0"):
            SvdLora(make_adapter(rank=rank), fraction=fraction)
    else:
        assert SvdLora(make_adapter(rank=rank), fraction=fraction).dim == 4 * 2 * int(fraction * rank + 1e-9)


def test_zero_vector_gives_back_the_adapter_bit_for_bit():
    adapter = make_adapter()
    folded = SvdLora(adapter).fold(np.zeros(32))
    for before, after in zip(adapter.modules, folded.modules, strict=True):
        assert np.array_equal(before.A, after.A)
        assert np.array_equal(before.B, after.B)


def test_folded_factors_equal_the_formula_of_the_paper():
    space = SvdLora(make_adapter(), fraction=0.5)
    vector = np.random.default_rng(1).standard_normal(space.dim)
    factors = {module.name: (module.A, module.B) for module in space.fold(vector).modules}
    for module, (s_a, s_b) in zip(space.modules, space.singular_values(vector[None]), strict=True):
        A, B = factors[module.name]
        np.testing.assert_allclose(A, module.a.U * s_a[0] @ module.a.Vt, atol=1e-5)
        np.testing.assert_allclose(B, module.b.U * s_b[0] @ module.b.Vt, atol=1e-5)
        core = (module.b.U * s_b[0]) @ module.core @ (s_a[0][:, None] * module.a.Vt)
        np.testing.assert_allclose(B @ A, core, atol=1e-5)


def test_offsets_are_in_units_of_the_factors_rms_singular_value():
    space = SvdLora(make_adapter())
    scaled = make_adapter()
    scaled = replace(scaled, modules=tuple(replace(m, B=m.B * 100) for m in scaled.modules))
    vector = np.random.default_rng(2).standard_normal(space.dim)
    for (_, small), (_, large) in zip(
        space.singular_values(vector[None]), SvdLora(scaled).singular_values(vector[None]), strict=True
    ):
        np.testing.assert_allclose(large, 100 * small, rtol=1e-4)


def test_only_the_largest_singular_values_are_searched():
    space = SvdLora(make_adapter(rank=4), fraction=0.5)
    s_a, _ = space.singular_values(np.ones((1, space.dim)))[0]
    moved = ~np.isclose(s_a[0], space.modules[0].a.s)
    assert moved.tolist() == [True, True, False, False]


def test_zero_factor_is_refused_and_says_how_to_go_on():
    adapter = make_adapter()
    fresh = replace(adapter, modules=(replace(adapter.modules[0], B=np.zeros((8, 4), np.float32)),))
    with pytest.raises(AdapterError, match=r"B of model.layers.0.self_attn.k_proj is zero.*esalign sft"):
        SvdLora(fresh)


def test_directions_without_a_singular_value_are_not_searched():
    adapter = make_adapter(layers=1)
    module = adapter.modules[0]
    B = module.B.copy()
    B[:, 1] = B[:, 0]
    space = SvdLora(replace(adapter, modules=(replace(module, B=B),)))
    assert space.dim == 4 + 3
    shifted = space.fold(np.ones(space.dim)).modules[0]
    A, folded = shifted.A, shifted.B
    assert np.linalg.matrix_rank(folded) == 3
    assert np.isfinite(A).all()


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        SvdLora(make_adapter(), fraction=fraction)


@pytest.mark.parametrize("candidates", [np.zeros(32), np.zeros((2, 31)), np.zeros((0, 32)), np.full((1, 32), np.nan)])
def test_candidates_of_a_wrong_shape_are_refused(candidates):
    with pytest.raises(ValueError, match="candidates"):
        SvdLora(make_adapter()).singular_values(candidates)


def test_saved_adapter_reads_back_equal(tmp_path):
    space = SvdLora(make_adapter())
    vector = np.random.default_rng(3).standard_normal(space.dim)
    again = read_adapter(space.save_pretrained(vector, tmp_path / "out"))
    for before, after in zip(space.fold(vector).modules, again.modules, strict=True):
        assert before.name == after.name
        assert before.scaling == after.scaling
        assert np.array_equal(before.A, after.A)
        assert np.array_equal(before.B, after.B)


def test_fingerprint_tells_adapters_and_fractions_apart():
    prints = {
        SvdLora(make_adapter()).fingerprint,
        SvdLora(make_adapter(), fraction=0.5).fingerprint,
        SvdLora(make_adapter(seed=1)).fingerprint,
    }
    assert len(prints) == 3
    assert SvdLora(make_adapter()).fingerprint in prints
