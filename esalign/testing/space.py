"""The contract of `esalign.protocols.Space`, one claim a function.

A plug-in's whole test is::

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_space(claim):
        claim(MySpace, adapter="adapter/")

Each claim takes what makes the space, a class or a function with the keywords model and adapter; and what these two
shall be, which is where the search starts: at an adapter (a PEFT folder, a hub id or ``embedded``), or without one at
the model as it is.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from esalign.assets import adapter_path
from esalign.errors import OptimizerError
from esalign.protocols import Space
from esalign.space import Adapter, read_adapter
from esalign.testing.refusal import expect_refusal
from esalign.types import Array

Make = Callable[..., Space]

POPULATION = 3
SPREAD = 0.5  # standard deviation of the candidates' coordinates
MOST_COORDINATES = 64  # looked at one by one
ROUNDING = 1e-5  # of the largest entry of an update: what float32 may do to a product of four matrices


def has_modules_that_engines_can_hold(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """There is something to search, and the frozen factors of each layer fit each other, finite and float32."""
    space = make(model=model, adapter=adapter)
    assert isinstance(space.dim, int)
    assert space.dim >= 1
    names = [module.name for module in space.modules]
    assert names
    assert len(set(names)) == len(names), "two modules have one name"
    for module in space.modules:
        assert np.isfinite(module.scaling)
        assert module.core.shape == (module.rank, module.rank), f"{module.name}: core is not (rank, rank)"
        assert module.a.Vt.shape[0] == module.rank, f"{module.name}: a.Vt is not (rank, in)"
        assert module.b.U.shape[1] == module.rank, f"{module.name}: b.U is not (out, rank)"
        for factor in (module.a.Vt, module.core, module.b.U):
            assert factor.dtype == np.float32
            assert np.isfinite(factor).all()


def starts_at_the_start(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """The zero vector folds into the given adapter, bit for bit; without one, into an update of exact zeros."""
    space = make(model=model, adapter=adapter)
    folded = space.fold(np.zeros(space.dim))
    if adapter is not None:
        _assert_equal(folded, read_adapter(adapter_path(adapter)))
        return
    for module in folded.modules:
        assert not (module.B @ module.A).any(), f"{module.name} is changed by the zero vector"


def folds_what_engines_compute(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """``fold(x)`` and ``singular_values(x)`` are one update: scaling * U_B diag(s_B) M diag(s_A) V_A^T."""
    space = make(model=model, adapter=adapter)
    vectors = [np.zeros(space.dim), *_draw(space)]
    values = space.singular_values(np.stack(vectors))
    for i, vector in enumerate(vectors):
        folded = {module.name: module.scaling * module.B @ module.A for module in space.fold(vector).modules}
        assert folded.keys() == {module.name for module in space.modules}, "other layers are folded than searched"
        for module, (s_a, s_b) in zip(space.modules, values, strict=True):
            computed = module.scaling * (module.b.U * s_b[i]) @ module.core @ (s_a[i][:, None] * module.a.Vt)
            worst = np.abs(folded[module.name] - computed).max()
            assert worst <= ROUNDING * max(np.abs(computed).max(), 1e-6), f"{module.name} differs by {worst:.2g}"


def gives_each_candidate_its_own_values(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """Singular values are (population, rank), float32 and finite, and a candidate's do not depend on the others."""
    space = make(model=model, adapter=adapter)
    candidates = _draw(space)
    together = space.singular_values(candidates)
    for module, pair in zip(space.modules, together, strict=True):
        for values in pair:
            assert values.shape == (POPULATION, module.rank)
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
    alone = space.singular_values(candidates[1:2])
    for one, many in zip(_flat(alone), _flat(together), strict=True):
        np.testing.assert_allclose(one[0], many[1], rtol=1e-5, atol=1e-7)


def uses_every_coordinate(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """Each coordinate alone, of at most 64 that are drawn, moves some singular value."""
    space = make(model=model, adapter=adapter)
    count = min(space.dim, MOST_COORDINATES)
    chosen = np.random.default_rng(1).choice(space.dim, count, replace=False)
    probes = np.zeros((count + 1, space.dim))  # the last is the start
    probes[np.arange(count), chosen] = SPREAD
    moved = np.zeros(count, dtype=bool)
    for values in _flat(space.singular_values(probes)):
        moved |= (values[:-1] != values[-1]).any(axis=1)
    assert moved.all(), f"coordinate {chosen[~moved][0]} moves nothing"


def means_the_same_when_made_again(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """Made twice of the same, it has one fingerprint and one meaning, so that a run can go on from its checkpoint."""
    one, other = (make(model=model, adapter=adapter) for _ in range(2))
    assert isinstance(one.fingerprint, str)
    assert one.fingerprint == other.fingerprint != ""
    candidates = _draw(one)
    for ours, theirs in zip(
        _flat(one.singular_values(candidates)), _flat(other.singular_values(candidates)), strict=True
    ):
        assert np.array_equal(ours, theirs)
    _assert_equal(one.fold(candidates[0]), other.fold(candidates[0]))


def saves_what_it_folds(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """``save_pretrained`` writes ``fold`` as a PEFT folder, and returns the folder."""
    space = make(model=model, adapter=adapter)
    vector = _draw(space)[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapter"
        assert Path(space.save_pretrained(vector, folder)) == folder
        _assert_equal(read_adapter(folder), space.fold(vector))


def refuses_wrong_shapes(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """Candidates of a wrong shape or with NaN are an OptimizerError of `singular_values`, a ValueError of `fold`."""
    space = make(model=model, adapter=adapter)
    for wrong in (np.zeros((1, space.dim + 1)), np.zeros(space.dim), np.zeros((0, space.dim)), _spoilt(space)[None]):
        expect_refusal(OptimizerError, space.singular_values, wrong)
    for wrong in (np.zeros(space.dim + 1), np.zeros((1, space.dim)), _spoilt(space)):
        expect_refusal(ValueError, space.fold, wrong)


def keeps_its_state_to_itself(make: Make, *, model: str | None = None, adapter: str | None = None) -> None:
    """Arguments are read, not written (float32 and read-only are fine), and scribbling over results changes nothing."""
    space = make(model=model, adapter=adapter)
    candidates = _draw(space).astype(np.float32)
    candidates.setflags(write=False)

    def arrays() -> list[Array]:
        folded = space.fold(candidates[0]).modules
        factors = [array for module in folded for array in (module.A, module.B)]
        return [*_flat(space.singular_values(candidates)), *factors]

    expected = [array.copy() for array in arrays()]
    for array in arrays():
        if array.flags.writeable:
            array[...] = 7
    for before, after in zip(expected, arrays(), strict=True):
        assert np.array_equal(before, after), "what was handed out is live state"


def _draw(space: Space) -> Array:
    """Return candidates, shape (POPULATION, dim)."""
    return SPREAD * np.random.default_rng(0).standard_normal((POPULATION, space.dim))


def _assert_equal(got: Adapter, expected: Adapter) -> None:
    """Assert that two adapters have equal layers, bit for bit."""
    layers, wanted = ({module.name: module for module in one.modules} for one in (got, expected))
    assert layers.keys() == wanted.keys(), f"layers {sorted(layers)}, expected {sorted(wanted)}"
    for name, module in wanted.items():
        assert layers[name].scaling == module.scaling, f"the scaling of {name} differs"
        assert np.array_equal(layers[name].A, module.A), f"A of {name} differs"
        assert np.array_equal(layers[name].B, module.B), f"B of {name} differs"


def _flat(values: list[tuple[Array, Array]]) -> list[Array]:
    return [array for pair in values for array in pair]


def _spoilt(space: Space) -> Array:
    vector = np.zeros(space.dim)
    vector[-1] = np.nan
    return vector


CLAIMS: tuple[Callable[..., None], ...] = (
    has_modules_that_engines_can_hold,
    starts_at_the_start,
    folds_what_engines_compute,
    gives_each_candidate_its_own_values,
    uses_every_coordinate,
    means_the_same_when_made_again,
    saves_what_it_folds,
    refuses_wrong_shapes,
    keeps_its_state_to_itself,
)
"""What every space must hold to."""
