"""Writing into ggml's tensors in place: every sign of an unknown memory layout is seen, and the slower way is taken."""

import ctypes
import warnings

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import tensors
from esalign_llama_cpp.library import load_library
from esalign_llama_cpp.model import GgufModel
from esalign_llama_cpp.switch import AdapterFile, InPlaceSwitch, free_adapter, load_adapter, make_sides
from esalign_llama_cpp.tensors import LayoutError, find_tensors
from llama_cpp_lab import complete, engines, open_lab
from watching import after_init

from esalign.errors import BackendError

SEQUENCE = [((5, 6, 7), (8, 9, 10))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("layout"))


@pytest.fixture
def make(lab):
    with engines(lab) as make:
        yield make


# --- an engine whose layout is unknown ---


def without_room(patch):
    patch.setattr(tensors, "OBJECT_BYTES", 24)


def with_swapped_fields(first, second):
    """Read two fields of ggml's struct from each other's places."""

    def swap(patch):
        fields = list(tensors.GgmlTensor._fields_)
        i, j = (next(at for at, (name, _) in enumerate(fields) if name == field) for field in (first, second))
        fields[i], fields[j] = fields[j], fields[i]
        patch.setattr(tensors, "GgmlTensor", type("Swapped", (ctypes.Structure,), {"_fields_": fields}))

    return swap


def without_callback(patch):
    patch.setattr(tensors, "_watch", lambda *_: {})


UNKNOWN_LAYOUTS = [
    pytest.param(without_room, id="objects of another size"),
    pytest.param(with_swapped_fields("extra", "name"), id="names at another place"),
    pytest.param(with_swapped_fields("data", "view_offs"), id="data at another place"),
    pytest.param(without_callback, id="no tensor shown"),
]


@pytest.mark.parametrize("make_unknown", UNKNOWN_LAYOUTS)
def test_an_unknown_layout_falls_back_to_public_functions_with_a_warning(make, lab, monkeypatch, make_unknown):
    expected = complete(make(), lab.candidates)
    make_unknown(monkeypatch)
    with pytest.warns(UserWarning, match="cannot be rewritten in place"):
        backend = make()
    assert complete(backend, lab.candidates) == expected


@pytest.mark.parametrize("make_unknown", UNKNOWN_LAYOUTS)
def test_an_unknown_layout_refuses_a_user_who_asks_for_in_place(make, monkeypatch, make_unknown):
    make_unknown(monkeypatch)
    with pytest.raises(BackendError, match="use method 'files'"):
        make(method="in-place")


def test_a_known_layout_gives_no_warning(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(make()._engine._switch, InPlaceSwitch)


def test_tensors_outside_of_main_memory_are_written_through_ggml(make, lab, monkeypatch):
    """As on a GPU: the values are computed beside, and handed over."""
    expected = make().score(lab.candidates, SEQUENCE)
    after_init(monkeypatch, tensors.Ggml, lambda ggml: setattr(ggml, "is_host", lambda _: False))
    backend = make(method="in-place")
    assert not backend._engine._switch._tensors[0]._direct
    for (one,), (other,) in zip(backend.score(lab.candidates, SEQUENCE), expected, strict=True):
        np.testing.assert_array_equal(one, other)


# --- each check of a tensor ---


@pytest.fixture
def model(lab):
    model = GgufModel(load_library(), lab.gguf)
    yield model
    model.close()


@pytest.fixture
def sides(model, lab):
    return make_sides(lab.space, model)


@pytest.fixture
def find(model, sides):
    """Load an adapter, and look for its tensors, of which some are expected to hold other values than were loaded."""

    def find(**expected):
        with AdapterFile(sides, model.architecture) as file:
            adapter = load_adapter(model, file.path)
        try:
            return find_tensors(model, adapter, {side.tensor: side.basis for side in sides} | expected)
        finally:
            free_adapter(model, adapter)

    return find


def nudged(values):
    values = values.copy()
    values[0, 0] += 1.0
    return values


def test_tensors_that_are_as_expected_are_found(find, sides):
    assert len(find()) == len(sides)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(nudged, "does not hold what was loaded", id="values"),
        pytest.param(lambda values: values.T.copy(), "shape", id="shape"),
        pytest.param(lambda values: values.astype(np.float16), "size", id="size"),
    ],
)
def test_memory_is_compared_with_what_was_loaded_into_it(find, sides, change, told):
    side = sides[0]
    with pytest.raises(LayoutError, match=told):
        find(**{side.tensor: change(side.basis)})


def test_a_tensor_that_is_not_there_is_named(find, sides):
    with pytest.raises(LayoutError, match="shows no tensor"):
        find(**{"blk.9.attn_q.weight.lora_a": sides[0].basis})


@pytest.mark.parametrize(
    ("field", "change", "told"),
    [
        ("type", lambda _: 1, "type"),
        ("ne", lambda ne: type(ne)(*reversed(ne)), "shape"),
        ("nb", lambda nb: type(nb)(nb[0], 8, 8, 8), "strides"),
    ],
)
def test_every_field_of_a_tensor_is_checked(find, monkeypatch, field, change, told):
    """The field is changed in a copy of the struct, which ggml's own functions then read as well."""
    copies = []  # kept alive
    shown = tensors._watch

    def show_changed_copy(address):
        copies.append(tensors.GgmlTensor.from_buffer_copy(tensors.GgmlTensor.from_address(address)))
        setattr(copies[-1], field, change(getattr(copies[-1], field)))
        return ctypes.addressof(copies[-1])

    monkeypatch.setattr(
        tensors, "_watch", lambda *call: {name: show_changed_copy(at) for name, at in shown(*call).items()}
    )
    with pytest.raises(LayoutError, match=f"the {told} of"):
        find()


@pytest.mark.parametrize(
    ("function", "told"), [("name", "address of the name"), ("data", "address of the data"), ("nbytes", "size")]
)
def test_what_is_read_is_compared_with_each_of_ggmls_functions(find, monkeypatch, function, told):
    def shift(ggml):
        right = getattr(ggml, function)
        setattr(ggml, function, lambda address: right(address) + 8)

    after_init(monkeypatch, tensors.Ggml, shift)
    with pytest.raises(LayoutError, match=f"the {told} of"):
        find()
