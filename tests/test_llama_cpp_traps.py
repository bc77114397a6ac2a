"""Every way in which the llama.cpp engine could give wrong results quietly, each with a test of its guard.

Those of an unknown memory layout are in `test_llama_cpp_layout.py`.
"""

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from esalign_llama_cpp import switch
from esalign_llama_cpp.context import Context
from esalign_llama_cpp.decoder import Decoder, common_prefix
from esalign_llama_cpp.library import CONTINUED, ERROR, WARNING, Log, load_library
from esalign_llama_cpp.options import default_threads
from llama_cpp_lab import PROMPTS, complete, draw, engines, open_lab
from watching import watch

from esalign.errors import BackendError
from esalign.types import Sampling

METHODS = pytest.mark.parametrize("method", ["in-place", "files"])  # to switch from candidate to candidate
SEQUENCE = [((5, 6, 7), (8, 9, 10))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("traps"))


@pytest.fixture
def make(lab):
    with engines(lab) as make:
        yield make


@pytest.fixture
def candidates(lab):
    return lab.candidates


def assert_close(rows, others):
    for row, other in zip(rows, others, strict=True):
        for one, two in zip(row, other, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-4)


# --- switching from candidate to candidate ---


def test_both_ways_to_switch_give_the_same_bits(make, candidates):
    in_place, files = (make(method=method).score(candidates, SEQUENCE) for method in ("in-place", "files"))
    for (one,), (other,) in zip(in_place, files, strict=True):
        np.testing.assert_array_equal(one, other)


@METHODS
def test_after_an_interrupted_call_nothing_comes_from_its_cache(make, candidates, method):
    expected = complete(make(), candidates[1:2])
    backend = make(sequences=4, method=method)

    def interrupt(*_):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            backend.generate(candidates[:1], PROMPTS, Sampling(max_tokens=12), interrupt)
    assert complete(backend, candidates[1:2]) == expected


def test_a_switch_empties_the_cache(make, candidates):
    """What all prompts share is read anew for every candidate, not copied from the last one's cache."""
    prompts = [[*range(5, 15), last] for last in range(20, 26)]
    together = complete(make(), candidates, prompts)
    assert together == [complete(make(), candidate[None], prompts)[0] for candidate in candidates]


@METHODS
def test_no_adapter_is_freed_while_a_context_has_it(make, candidates, monkeypatch, method):
    """llama.cpp would read freed memory: a crash, or the last candidate's completions."""
    in_use, freed = {}, []

    def note_use(context, adapter):
        in_use[id(context)] = None if adapter is None else ctypes.addressof(adapter.contents)

    def note_free(_model, adapter):
        freed.append(ctypes.addressof(adapter.contents))
        assert freed[-1] not in in_use.values()

    watch(monkeypatch, Context, "use", note_use)
    watch(monkeypatch, Context, "close", lambda context: in_use.pop(id(context), None))
    watch(monkeypatch, switch, "free_adapter", note_free)
    backend = make(method=method)
    backend.score(candidates, SEQUENCE)
    backend.close()
    assert len(freed) == (1 if method == "in-place" else 1 + len(candidates))


@METHODS
def test_a_growing_context_goes_on_with_the_adapter(tmp_path, method):
    lab = open_lab(tmp_path, max_position_embeddings=1024)
    one, other = lab.candidates[:1], lab.candidates[1:2]
    with engines(lab) as make:
        backend = make(method=method)
        before, context = backend.score(one, SEQUENCE), backend._engine._context
        backend.score(other, [((5,) * 600, (8, 9, 10))])
        assert backend._engine._context is not context
        assert_close(backend.score(one, SEQUENCE), before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@METHODS
def test_switches_leave_memory_flat(make, lab, method):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    backend, candidates = make(method=method), draw(lab.space, 300, spread=0.3)
    backend.score(candidates[:100], SEQUENCE)
    before = resident_bytes()
    backend.score(candidates, SEQUENCE)
    assert resident_bytes() - before < 2**20


# --- precision, and the size of the batch ---


def test_float32_means_float32_throughout(make, lab):
    for options in ({"dtype": "float32"}, {"dtype": "auto"}, {"model": lab.gguf}):
        settings = make(**options)._engine.settings
        assert (settings.kv_type, settings.flash_attention) == ("f32", False)


def test_quantised_weights_have_a_cache_of_half_precision(make):
    assert make(quantization="q8_0")._engine.settings.kv_type == "f16"


def test_the_cache_is_not_unified_unless_asked(make):
    assert not make()._engine.settings.unified


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize(
    ("adapted", "least_share"),
    [
        pytest.param(False, 1.0, id="the bare model"),
        # the adapter's own float32 product rounds by the size of the batch, which tips a few of random weights
        pytest.param(True, 0.95, id="candidates"),
    ],
)
def test_quantised_completions_do_not_depend_on_the_batch(make, lab, kind, adapted, least_share):
    """With a cache for each sequence, 8 at a time and one at a time are the same; a unified cache breaks that."""
    space, population = (lab.space, lab.candidates) if adapted else (None, np.zeros((1, 0)))
    prompts = [*PROMPTS, *([7 + j, 300 - j, 20 + 3 * j] for j in range(20))]
    together, alone = (
        complete(make(sequences=count, quantization=kind, space=space), population, prompts) for count in (8, 1)
    )
    pairs = [pair for rows in zip(together, alone, strict=True) for pair in zip(*rows, strict=True)]
    assert np.mean([one == other for one, other in pairs]) >= least_share


def test_completions_are_the_same_for_any_batch_size(make, candidates):
    wide, narrow = make(batch=512), make(batch=8, sequences=7)
    assert complete(narrow, candidates[:2]) == complete(wide, candidates[:2])


def test_scores_are_the_same_for_any_batch_size(make, candidates):
    sequences = [((5, 6, 7, 8), tuple(range(9, 60))), ((5, 6), (7,))]
    wide, narrow = (make(batch=batch, sequences=3).score(candidates[:2], sequences) for batch in (512, 5))
    assert_close(wide, narrow)


# --- what is fed to llama.cpp ---


@pytest.fixture
def fed(monkeypatch):
    """The sequence number of each token that is read from now on, one array a batch."""
    batches = []
    watch(monkeypatch, Context, "decode", lambda context, count: batches.append(context.sequence[:count].copy()))
    return batches


def tokens(fed):
    return sum(map(len, fed))


SHARING = [[*range(10, 60), 70 + j] for j in range(6)]  # 50 tokens that all share, and one of each


@pytest.fixture
def fresh(make, fed):
    """An engine that has read nothing since it started."""
    backend = make()
    fed.clear()
    return backend


def test_what_all_prompts_share_is_read_once(fresh, candidates, fed):
    complete(fresh, candidates[:1], SHARING, max_tokens=1)
    assert tokens(fed) == 50 + 6


def test_a_prompt_that_is_repeated_is_read_once(fresh, candidates, fed):
    complete(fresh, candidates[:1], [SHARING[0]] * 6, max_tokens=1, temperature=1.0)
    assert tokens(fed) == 51


def test_reading_once_changes_no_completion(make, fresh, candidates, fed, monkeypatch):
    expected = complete(make(), candidates[:1], SHARING, max_tokens=1)
    monkeypatch.setattr("esalign_llama_cpp.decoder.LEAST_SHARED", 1000)
    fed.clear()
    assert complete(fresh, candidates[:1], SHARING, max_tokens=1) == expected
    assert tokens(fed) == 6 * 51


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        pytest.param([(1, 2, 3), (1, 2, 3)], 2, id="equal: the last token is left"),
        pytest.param([(1,), (1, 2)], 0, id="one token: it is left"),
        pytest.param([(1, 2, 3), (1, 9, 3), (1, 2, 4)], 1, id="the shortest that two share"),
    ],
)
def test_common_prefix_leaves_a_token_of_each_prompt(prompts, expected):
    assert common_prefix(prompts) == expected


def test_sequences_in_work_keep_consecutive_numbers(make, candidates, fed):
    """llama.cpp computes only such together: with gaps, a batch falls apart into pieces."""
    rows = complete(make(sequences=5), candidates, max_tokens=40)
    assert len({len(ids) for row in rows for ids in row}) > 3  # sequences end at different times
    writing = [numbers for numbers in fed if len(set(numbers)) == len(numbers)]  # a token of each
    assert writing
    for numbers in writing:
        assert set(numbers) == set(range(min(numbers), min(numbers) + len(numbers)))


def test_a_prompt_is_read_in_one_piece_whatever_its_company(make, candidates, fed):
    """How a prompt is cut up shows in the completions of quantised weights. A batch holds 64 tokens here."""
    lengths = [5, 30, 7, 7, 2, 100, 9]
    complete(make(sequences=4, batch=64), candidates[:1], [[20 + j] * n for j, n in enumerate(lengths)], max_tokens=20)
    pieces = []
    for numbers in fed:
        counts = np.unique(numbers, return_counts=True)[1].tolist()
        assert len(set(counts)) == 1  # pieces of one length together
        pieces += counts
    assert sorted(piece for piece in pieces if piece > 1) == sorted([5, 30, 7, 7, 2, 64, 36, 9])


@pytest.mark.parametrize("sequences", [1, 2, 5, 10])
def test_samples_fit_into_a_context_that_holds_fewer_than_a_prompt_has(make, candidates, sequences):
    prompts = [[5, 6, 7]] * 9 + [[8, 9]] * 4
    wide, narrow = (
        complete(make(sequences=n), candidates[:2], prompts, max_tokens=6, temperature=1.0) for n in (32, sequences)
    )
    assert narrow == wide


def test_every_candidate_is_fed_the_same_prompts_in_the_same_order(make, candidates, monkeypatch):
    runs = []

    def note(decoder, groups, _consumer):
        runs.append(([(group.prompt, group.members) for group in groups], decoder._room))

    watch(monkeypatch, Decoder, "run", note)
    complete(make(), candidates)
    assert runs == [runs[0]] * len(candidates)


# --- the library ---


def test_one_copy_of_ggml_is_mapped(make):
    """Its symbols are taken from libllama's handle; by path, a second copy with its own state would be loaded."""
    make()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert len({line.split()[-1] for line in maps.read_text().splitlines() if "libggml-base" in line}) == 1


NO_REASON = "llama.cpp gave no reason"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param([(1, "debug\n"), (2, "info\n"), (CONTINUED, "more info\n")], NO_REASON, id="chatter is none"),
        pytest.param([(WARNING, "load: half "), (CONTINUED, "a line\n")], "half a line", id="a line comes in parts"),
        pytest.param(
            [
                (WARNING, "load: a warning\n"),
                (ERROR, "f: error loading model: it is broken\n"),
                (ERROR, "g: failed to load model\n"),
            ],
            "it is broken",
            id="the first error says why",
        ),
    ],
)
def test_the_reason_of_a_failure_is_read_from_the_log(lines, reason):
    log = Log()
    for level, text in lines:
        log.add(level, text)
    assert log.reason == reason
    log.clear()
    assert log.reason == NO_REASON


def test_threads_default_to_half_of_the_processors():
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_threads() == max(1, available // 2)


def test_threads_that_are_asked_for_are_used(make, candidates):
    backend = make(threads=3)
    complete(backend, candidates[:1], [[5]], max_tokens=1)
    api, context = load_library().api, backend._engine._context._pointer
    assert (api.llama_n_threads(context), api.llama_n_threads_batch(context)) == (3, 3)


# --- the end ---


def test_closing_removes_the_converted_model_and_may_be_repeated(make, candidates):
    backend = make()
    converted = backend._source.gguf
    assert converted.exists()
    complete(backend, candidates[:1], PROMPTS[:2])
    backend.close()
    backend.close()
    assert not converted.exists()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(complete, id="generate"),
        pytest.param(lambda backend, candidates: backend.score(candidates, SEQUENCE), id="score"),
        pytest.param(lambda backend, _: backend.encode("a"), id="encode"),
    ],
)
def test_a_closed_engine_says_so(make, candidates, call):
    backend = make()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        call(backend, candidates)
