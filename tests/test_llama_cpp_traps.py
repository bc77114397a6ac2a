"""Every way in which the llama.cpp engine could give wrong results quietly, each with a test of its guard."""

import ctypes
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import LlamaCppBackend, convert_model, tensors
from esalign_llama_cpp.context import Context
from esalign_llama_cpp.decoder import Decoder, common_prefix
from esalign_llama_cpp.library import CONTINUED, ERROR, WARNING, Log, load_library
from esalign_llama_cpp.model import GgufModel
from esalign_llama_cpp.options import default_threads
from esalign_llama_cpp.switch import AdapterFile, InPlaceSwitch, free_adapter, load_adapter, make_sides
from esalign_llama_cpp.tensors import LayoutError, find_tensors
from models import ATTENTION, MLP, make_tiny

from esalign.errors import BackendError
from esalign.space import SvdLora
from esalign.types import Sampling

GREEDY = Sampling(max_tokens=12)
PROMPTS = [f"{'Find the sum. ' * (j % 3)}{3 * j + 1} + {5 * j + 2} =" for j in range(12)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("traps"), "llama", targets=ATTENTION + MLP)


@pytest.fixture(scope="module")
def space(tiny):
    return SvdLora.from_pretrained(tiny.adapter)


@pytest.fixture(scope="module")
def candidates(space):
    return np.random.default_rng(0).standard_normal((6, space.dim)) * 0.5


@pytest.fixture
def make(tiny, space):
    made = []

    def make(model=tiny.model, space=space, **options):
        made.append(LlamaCppBackend(model, space, **({"threads": 1} | options)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def gguf(tiny, tmp_path_factory):
    return convert_model(tiny.model, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture
def model(gguf):
    model = GgufModel(load_library(), gguf)
    yield model
    model.close()


def ids(rows):
    return [[answer.token_ids for answer in row] for row in rows]


def test_both_ways_to_switch_give_the_same_bits(make, candidates):
    scores = [make(method=method).score(candidates, [((5, 6, 7), (8, 9, 10, 11))]) for method in ("in-place", "files")]
    for (one,), (other,) in zip(*scores, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["in-place", "files"])
def test_candidates_after_an_interrupted_call_are_not_answered_from_its_cache(make, candidates, method):
    expected = ids(make().generate(candidates[1:2], PROMPTS, GREEDY))
    backend = make(sequences=4, method=method)

    def interrupt(_candidate, prompt, _answer):
        raise KeyboardInterrupt(prompt)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            backend.generate(candidates[:1], PROMPTS, GREEDY, interrupt)
    assert ids(backend.generate(candidates[1:2], PROMPTS, GREEDY)) == expected


def test_a_switch_empties_the_cache(make, candidates, monkeypatch):
    """What all prompts share is read anew for every candidate, not copied from the last one's cache."""
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, last] for last in range(20, 26)]
    backend = make()
    together = ids(backend.generate(candidates, prompts, GREEDY))
    alone = [ids(make().generate(candidate[None], prompts, GREEDY))[0] for candidate in candidates]
    assert together == alone


@pytest.mark.parametrize("method", ["in-place", "files"])
def test_no_adapter_is_freed_while_a_context_has_it(make, candidates, monkeypatch, method):
    """llama.cpp would read freed memory: a crash, or the last candidate's answers."""
    in_use, freed = {}, []
    use, close = Context.use, Context.close

    def note_use(self, adapter):
        use(self, adapter)
        in_use[id(self)] = None if adapter is None else ctypes.addressof(adapter.contents)

    def note_close(self):
        close(self)
        in_use.pop(id(self), None)

    def note_free(model, adapter):
        freed.append(ctypes.addressof(adapter.contents))
        assert freed[-1] not in in_use.values()
        free_adapter(model, adapter)

    monkeypatch.setattr(Context, "use", note_use)
    monkeypatch.setattr(Context, "close", note_close)
    monkeypatch.setattr("esalign_llama_cpp.switch.free_adapter", note_free)
    backend = make(method=method)
    backend.score(candidates, [((5, 6, 7), (8, 9, 10))])
    backend.close()
    assert len(freed) == (1 if method == "in-place" else 1 + len(candidates))


@pytest.mark.parametrize("method", ["in-place", "files"])
def test_a_growing_context_goes_on_with_the_adapter(tmp_path, method):
    tiny = make_tiny(tmp_path, "llama", max_position_embeddings=1024)
    space = SvdLora.from_pretrained(tiny.adapter)
    candidates = np.random.default_rng(0).standard_normal((2, space.dim)) * 0.5
    sequences = [((5, 6, 7), (8, 9, 10))]
    backend = LlamaCppBackend(tiny.model, space, threads=1, method=method)
    before = backend.score(candidates[:1], sequences)[0][0]
    context = backend._engine._context
    backend.score(candidates[1:], [((5,) * 600, (8, 9, 10))])
    assert backend._engine._context is not context
    np.testing.assert_allclose(backend.score(candidates[:1], sequences)[0][0], before, atol=2e-4)
    backend.close()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantised_answers_do_not_depend_on_the_batch(make, candidates, kind):
    """With a cache for each sequence, 8 at a time and one at a time are the same; a unified cache breaks that.

    The adapter's own float32 product rounds by the size of the batch, which tips a few answers of random weights.
    """
    prompts = [*PROMPTS, *([7 + j, 300 - j, 20 + 3 * j] for j in range(20))]
    for space, population, share in ((None, np.zeros((1, 0)), 1.0), (candidates, candidates, 0.95)):
        options = {"quantization": kind} | ({"space": None} if space is None else {})
        together = ids(make(sequences=8, **options).generate(population, prompts, GREEDY))
        alone = ids(make(sequences=1, **options).generate(population, prompts, GREEDY))
        equal = [a == b for row, other in zip(together, alone, strict=True) for a, b in zip(row, other, strict=True)]
        assert np.mean(equal) >= share


def test_the_cache_is_not_unified_unless_asked(make):
    assert not make()._engine.settings.unified


def test_float32_means_float32_throughout(make, gguf):
    for backend in (make(dtype="float32"), make(dtype="auto"), make(model=gguf)):
        assert backend._engine.settings.kv_type == "f32"
        assert backend._engine.settings.flash_attention is False
    assert make(quantization="q8_0")._engine.settings.kv_type == "f16"


def test_what_all_prompts_share_is_read_once(make, candidates, monkeypatch):
    fed = []
    backend, unshared = make(), make()
    decode = Context.decode

    def count(self, number):
        fed.append(number)
        return decode(self, number)

    monkeypatch.setattr(Context, "decode", count)
    prefix = list(range(10, 60))
    prompts = [[*prefix, 70 + j] for j in range(6)]
    one = Sampling(max_tokens=1)
    shared = ids(backend.generate(candidates[:1], prompts, one))
    assert sum(fed) == 50 + 6
    fed.clear()
    backend.generate(candidates[:1], [prompts[0]] * 6, Sampling(max_tokens=1, temperature=1.0))
    assert sum(fed) == 51
    monkeypatch.setattr("esalign_llama_cpp.decoder.LEAST_SHARED", 1000)
    fed.clear()
    assert ids(unshared.generate(candidates[:1], prompts, one)) == shared
    assert sum(fed) == 51 * 6


def test_common_prefix_leaves_a_token_of_each_prompt():
    assert common_prefix([(1, 2, 3), (1, 2, 3)]) == 2
    assert common_prefix([(1,), (1, 2)]) == 0
    assert common_prefix([(1, 2, 3), (1, 9, 3), (1, 2, 4)]) == 1


def test_sequences_in_work_keep_consecutive_numbers(make, candidates, monkeypatch):
    """llama.cpp computes only such together: with gaps, a batch falls apart into pieces."""
    backend = make(sequences=5)
    decode = Context.decode

    def check(self, number):
        used = set(self.sequence[:number].tolist())
        assert len(used) == number < 6 or len(used) == 1 or number > 5  # answering, or reading
        if len(used) == number:
            assert used == set(range(min(used), min(used) + number))
        return decode(self, number)

    monkeypatch.setattr(Context, "decode", check)
    rows = backend.generate(candidates, PROMPTS, Sampling(max_tokens=40))
    lengths = {len(answer.token_ids) for row in rows for answer in row}
    assert len(lengths) > 3


def test_a_prompt_is_read_in_one_piece_whatever_its_company(make, candidates, monkeypatch):
    """How a prompt is cut up shows in the answers of quantised weights."""
    backend = make(sequences=4, batch=64)
    decode = Context.decode
    pieces = []

    def note(self, number):
        _, counts = np.unique(self.sequence[:number], return_counts=True)
        assert len(set(counts.tolist())) == 1
        pieces.extend(counts.tolist())
        return decode(self, number)

    monkeypatch.setattr(Context, "decode", note)
    lengths = [5, 30, 7, 7, 2, 100, 9]
    backend.generate(candidates[:1], [[20 + j] * n for j, n in enumerate(lengths)], Sampling(max_tokens=20))
    assert sorted(piece for piece in pieces if piece > 1) == sorted([5, 30, 7, 7, 2, 64, 36, 9])


def test_groups_never_exceed_the_room(make, candidates):
    """Many samples of few prompts, in a context that holds fewer than are asked of one prompt."""
    sampling = Sampling(max_tokens=6, temperature=1.0)
    prompts = [[5, 6, 7]] * 9 + [[8, 9]] * 4
    wide = ids(make(sequences=32).generate(candidates[:2], prompts, sampling))
    for sequences in (1, 2, 5, 10):
        assert ids(make(sequences=sequences).generate(candidates[:2], prompts, sampling)) == wide


def test_answers_are_the_same_for_any_batch_size(make, candidates):
    expected = ids(make(batch=512).generate(candidates[:2], PROMPTS, GREEDY))
    assert ids(make(batch=8, sequences=7).generate(candidates[:2], PROMPTS, GREEDY)) == expected
    sequences = [((5, 6, 7, 8), tuple(range(9, 60))), ((5, 6), (7,))]
    wide, narrow = (make(batch=b, sequences=3).score(candidates[:2], sequences) for b in (512, 5))
    for row, other in zip(wide, narrow, strict=True):
        for a, b in zip(row, other, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)


def test_one_copy_of_ggml_is_mapped(make):
    """Its symbols are taken from libllama's handle; by path, a second copy with its own state would be loaded."""
    make()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    copies = {line.split()[-1] for line in maps.read_text().splitlines() if "libggml-base" in line}
    assert len(copies) == 1


def break_size(monkeypatch):
    monkeypatch.setattr(tensors, "OBJECT_BYTES", 24)


def break_name(monkeypatch):
    broken = type("Broken", (ctypes.Structure,), {"_fields_": swapped("extra", "name")})
    monkeypatch.setattr(tensors, "GgmlTensor", broken)


def break_data(monkeypatch):
    broken = type("Broken", (ctypes.Structure,), {"_fields_": swapped("data", "view_offs")})
    monkeypatch.setattr(tensors, "GgmlTensor", broken)


def break_callback(monkeypatch):
    monkeypatch.setattr(tensors, "_watch", lambda *_: {})


def swapped(first, second):
    fields = [(name, kind) for name, kind in tensors.GgmlTensor._fields_]
    names = [name for name, _ in fields]
    i, j = names.index(first), names.index(second)
    fields[i], fields[j] = fields[j], fields[i]
    return fields


@pytest.mark.parametrize("break_it", [break_size, break_name, break_data, break_callback])
def test_an_unknown_memory_layout_falls_back_to_public_functions_with_a_warning(
    make, candidates, monkeypatch, break_it
):
    expected = ids(make().generate(candidates, PROMPTS, GREEDY))
    break_it(monkeypatch)
    with pytest.warns(UserWarning, match="cannot be rewritten in place"):
        backend = make()
    assert ids(backend.generate(candidates, PROMPTS, GREEDY)) == expected
    with pytest.raises(BackendError, match="use method 'files'"):
        make(method="in-place")


def test_a_known_memory_layout_gives_no_warning(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(make()._engine._switch, InPlaceSwitch)


def loaded_tensors(model, sides, expected):
    with AdapterFile(sides, model.architecture) as file:
        adapter = load_adapter(model, file.path)
    try:
        return find_tensors(model, adapter, expected)
    finally:
        free_adapter(model, adapter)


def test_memory_is_compared_with_what_was_loaded_into_it(model, space):
    sides = make_sides(space, model)
    expected = {side.tensor: side.basis.copy() for side in sides}
    loaded_tensors(model, sides, expected)
    expected[sides[3].tensor][0, 0] += 1.0
    with pytest.raises(LayoutError, match="does not hold what was loaded"):
        loaded_tensors(model, sides, expected)


def test_shape_and_presence_of_tensors_are_checked(model, space):
    sides = make_sides(space, model)
    expected = {side.tensor: side.basis for side in sides}
    name = sides[0].tensor
    with pytest.raises(LayoutError, match="shape"):
        loaded_tensors(model, sides, expected | {name: expected[name].T.copy()})
    with pytest.raises(LayoutError, match="size"):
        loaded_tensors(model, sides, expected | {name: expected[name].astype(np.float16)})
    with pytest.raises(LayoutError, match="shows no tensor"):
        loaded_tensors(model, sides, expected | {"blk.9.attn_q.weight.lora_a": expected[name]})


@pytest.mark.parametrize(
    ("field", "change", "told"),
    [
        ("type", lambda _: 1, "type"),
        ("ne", lambda ne: ne[::-1], "shape"),
        ("nb", lambda nb: [*nb[:1], 8, 8, 8], "strides"),
    ],
)
def test_every_field_of_a_tensor_is_checked(model, space, monkeypatch, field, change, told):
    """The field is changed in a copy of the struct, which ggml's own functions then read as well."""
    copies = {}
    watch = tensors._watch

    def show_copies(*arguments):
        for name, address in watch(*arguments).items():
            copies[name] = copy = tensors.GgmlTensor.from_buffer_copy(tensors.GgmlTensor.from_address(address))
            old = getattr(copy, field)
            setattr(copy, field, change(old) if field == "type" else type(old)(*change(list(old))))
        return {name: ctypes.addressof(copy) for name, copy in copies.items()}

    monkeypatch.setattr(tensors, "_watch", show_copies)
    sides = make_sides(space, model)
    with pytest.raises(LayoutError, match=f"the {told} of"):
        loaded_tensors(model, sides, {side.tensor: side.basis for side in sides})


@pytest.mark.parametrize(
    ("function", "told"), [("name", "address of the name"), ("data", "address of the data"), ("nbytes", "size")]
)
def test_what_is_read_is_compared_with_each_of_ggmls_functions(model, space, monkeypatch, function, told):
    original = tensors.Ggml.__init__

    def shift(self, library):
        original(self, library)
        right = getattr(self, function)
        setattr(self, function, lambda address: right(address) + 8)

    monkeypatch.setattr(tensors.Ggml, "__init__", shift)
    sides = make_sides(space, model)
    with pytest.raises(LayoutError, match=f"the {told} of"):
        loaded_tensors(model, sides, {side.tensor: side.basis for side in sides})


def test_tensors_outside_of_main_memory_are_written_through_ggml(make, candidates, monkeypatch):
    """As on a GPU: the values are computed beside, and handed over."""
    expected = make().score(candidates, [((5, 6, 7), (8, 9, 10))])
    original = tensors.Ggml.__init__

    def without_host(self, library):
        original(self, library)
        self.is_host = lambda _: False

    monkeypatch.setattr(tensors.Ggml, "__init__", without_host)
    backend = make(method="in-place")
    assert not backend._engine._switch._tensors[0]._direct
    for row, other in zip(backend.score(candidates, [((5, 6, 7), (8, 9, 10))]), expected, strict=True):
        np.testing.assert_array_equal(row[0], other[0])


def test_reasons_are_read_at_the_levels_of_this_library():
    log = Log()
    log.add(1, "debug\n")
    log.add(2, "info\n")
    log.add(CONTINUED, "more info\n")
    assert log.reason == "llama.cpp gave no reason"
    log.add(WARNING, "load: half ")
    log.add(CONTINUED, "a line\n")
    assert log.reason == "half a line"
    log.add(ERROR, "f: error loading model: it is broken\n")
    log.add(ERROR, "g: failed to load model\n")
    assert log.reason == "it is broken"
    log.clear()
    assert log.reason == "llama.cpp gave no reason"


def test_threads_default_to_half_of_the_processors(make):
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_threads() == max(1, available // 2)
    backend = make(threads=3)
    backend.generate(np.zeros((1, backend.space.dim)), [[5]], Sampling(max_tokens=1))
    api = load_library().api
    assert api.llama_n_threads(backend._engine._context._pointer) == 3
    assert api.llama_n_threads_batch(backend._engine._context._pointer) == 3


def test_every_candidate_is_fed_the_same_prompts_in_the_same_order(make, candidates, monkeypatch):
    runs = []
    run = Decoder.run

    def note(self, groups, consumer):
        runs.append(([(group.prompt, group.members) for group in groups], self._room))
        run(self, groups, consumer)

    monkeypatch.setattr(Decoder, "run", note)
    make().generate(candidates, PROMPTS, GREEDY)
    assert len(runs) == len(candidates)
    assert all(one == runs[0] for one in runs)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ["in-place", "files"])
def test_switches_leave_memory_flat(make, space, method):
    backend = make(method=method)
    candidates = np.random.default_rng(0).standard_normal((300, space.dim)) * 0.3
    sequence = [((5, 6, 7), (8, 9))]
    backend.score(candidates[:100], sequence)
    before = resident_bytes()
    backend.score(candidates, sequence)
    assert resident_bytes() - before < 2**20


def test_closing_gives_the_memory_back_and_a_closed_engine_says_so(make, candidates):
    backend = make()
    temporary = backend._source.gguf
    assert temporary.exists()
    backend.generate(candidates[:1], PROMPTS[:2], GREEDY)
    backend.close()
    backend.close()
    assert not temporary.exists()
    for call in (
        lambda: backend.generate(candidates, PROMPTS, GREEDY),
        lambda: backend.score(candidates, [((1,), (2,))]),
        lambda: backend.encode("a"),
    ):
        with pytest.raises(BackendError, match="closed"):
            call()
