"""The torch engine holds the contract of engines on every architecture, and keeps the promises of its own."""

import shutil
import subprocess
import sys
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from esalign_torch import TorchBackend
from esalign_torch.decoding import Batch
from models import (
    ARCHITECTURES,
    ATTENTION,
    append_end,
    drop_tokenizer_entry,
    make_adapter,
    make_model,
    make_tiny,
)
from special_stops import check_special_stops
from transformers import AutoModelForCausalLM

from esalign.engines.loading import load_model, load_tokenizer
from esalign.engines.stops import StopStrings
from esalign.errors import BackendError, MissingPackageError
from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Reference, Subject
from esalign.testing.subject import ids_of
from esalign.types import Sampling

PARITY = [claim for claim in BACKEND_CLAIMS if claim.__name__.endswith("as_the_folded_adapter_does")]
GREEDY = Sampling(max_tokens=24)


def make_subject(folder, architecture, **changes):
    tiny = make_tiny(folder, architecture, **changes)
    space = SvdLora.from_pretrained(tiny.adapter)
    return Subject(partial(TorchBackend, tiny.model, space, device="cpu"), model=tiny.model, space=space)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """One subject per architecture, made when first asked for."""
    made = {}

    def get(architecture):
        if architecture not in made:
            made[architecture] = make_subject(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return get


@pytest.fixture(scope="module")
def llama(subjects):
    return subjects("llama")


@pytest.fixture(scope="module")
def given(llama):
    """The same model, handed over as an object."""

    def make():
        return TorchBackend(load_model("model", str(llama.model), dtype="float32", device="cpu"), llama.space)

    return Subject(make, model=llama.model, space=llama.space)


@pytest.fixture
def copied(llama, tmp_path):
    """A copy of the Llama model's folder, to be spoilt."""
    return shutil.copytree(llama.model, tmp_path / "model")


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_torch_engine_holds_the_contract(llama, claim):
    claim(llama)


@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
def test_a_model_that_is_loaded_already_answers_as_the_folded_adapter_does(given, claim):
    claim(given)


def test_a_soft_cap_of_the_attention_is_kept(tmp_path):
    """transformers' own choice of attention leaves it out."""
    import torch
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "model", "gemma2", attn_logit_softcapping=0.5)
    ids = torch.arange(30, 60)[None]
    eager, fused = (
        AutoModelForCausalLM.from_pretrained(model, attn_implementation=kind)(ids).logits[0, :-1].log_softmax(-1)
        for kind in ("eager", "sdpa")
    )
    eager, fused = (table.gather(1, ids[0, 1:, None])[:, 0].detach().numpy() for table in (eager, fused))
    assert np.abs(eager - fused).max() > 0.1
    backend = TorchBackend(model, None, dtype="float32", device="cpu")
    [[scores]] = backend.score(np.zeros((1, 0)), [(tuple(ids[0, :1].tolist()), tuple(ids[0, 1:].tolist()))])
    np.testing.assert_allclose(scores, eager, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
def test_every_architecture_equals_the_folded_adapter(subjects, architecture, claim):
    claim(subjects(architecture))


@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
def test_all_linear_layers_can_be_adapted_at_differing_ranks(tmp_path, claim):
    targets = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    subject = make_subject(tmp_path, "llama", targets=targets, rank=6, rank_pattern={"v_proj": 3, "down_proj": 2})
    assert {module.rank for module in subject.space.modules} == {6, 3, 2}
    claim(subject)


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, 0), (1.0, 0), (1.0, 5)])
def test_answers_do_not_depend_on_how_the_work_is_cut(llama, temperature, greedy, monkeypatch):
    sampling = Sampling(max_tokens=150, temperature=temperature, seed=3, greedy=greedy)
    joined = []
    join = Batch.join.__func__
    monkeypatch.setattr(Batch, "join", classmethod(lambda cls, parts: joined.append(len(parts)) or join(cls, parts)))
    whole = ids_of(llama.backend.generate(llama.candidates, llama.prompts, sampling))
    assert not joined
    cut = TorchBackend(llama.model, llama.space, device="cpu", max_rows=11)
    llama.agrees(ids_of(cut.generate(llama.candidates, llama.prompts, sampling)), whole, slack=2)
    assert max(joined) > 1, "no batches were joined, so this shows little"


def test_a_finished_batch_has_left_the_memory_when_the_next_one_is_read(llama, monkeypatch):
    batches, alive = weakref.WeakSet(), []
    read = Batch.read.__func__

    def watched(cls, *args):
        alive.append(len(batches))
        batch = read(cls, *args)
        batches.add(batch)
        return batch

    monkeypatch.setattr(Batch, "read", classmethod(watched))
    cut = TorchBackend(llama.model, llama.space, device="cpu", max_rows=11)
    cut.generate(llama.candidates, llama.prompts, Sampling(max_tokens=1))
    assert len(alive) > 3
    assert not any(alive)


def test_no_more_rows_are_in_memory_than_asked_for_those_that_wait_included(llama, monkeypatch):
    batches, held = weakref.WeakSet(), []
    read, make = Batch.read.__func__, Batch.__init__

    def watched(cls, engine, request, rows, most_tokens):
        held.append((sum(batch.live for batch in batches), len(rows)))
        return read(cls, engine, request, rows, most_tokens)

    monkeypatch.setattr(Batch, "read", classmethod(watched))
    monkeypatch.setattr(Batch, "__init__", lambda self, *args, **more: batches.add(self) or make(self, *args, **more))
    cut = TorchBackend(llama.model, llama.space, device="cpu", max_rows=11)
    join, emptied = Batch.join.__func__, []

    def joined(cls, parts):
        batch = join(cls, parts)
        emptied.append(not any(hasattr(layer, "key_buffer") for part in parts for layer in part.cache.row_layers))
        return batch

    monkeypatch.setattr(Batch, "join", classmethod(joined))
    cut.generate(llama.candidates, llama.prompts, Sampling(max_tokens=150))
    assert emptied
    assert all(emptied)
    assert any(waiting for waiting, _ in held)
    assert max(waiting + read for waiting, read in held) == 11


def test_scores_do_not_depend_on_how_the_work_is_cut(llama):
    sequences = [(llama.backend.encode(prompt), (5, 6, 7, 8)[: 1 + j % 4]) for j, prompt in enumerate(llama.prompts)]
    whole = llama.backend.score(llama.candidates, sequences)
    cut = TorchBackend(llama.model, llama.space, device="cpu", memory_gb=1e-4)
    assert cut._limits.tokens < 300
    for row, other in zip(whole, cut.score(llama.candidates, sequences), strict=True):
        for a, b in zip(row, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_answers_that_ran_out_of_memory_are_found_in_smaller_batches(llama, monkeypatch):
    read = Batch.read.__func__

    def short_of_memory(cls, engine, request, rows, most_tokens):
        if len(rows) > 20:
            raise torch.OutOfMemoryError
        return read(cls, engine, request, rows, most_tokens)

    monkeypatch.setattr(Batch, "read", classmethod(short_of_memory))
    calls = []
    rows = llama.backend.generate(llama.candidates, llama.prompts, GREEDY, lambda *call: calls.append(call[:2]))
    assert ids_of(rows) == ids_of(llama.greedy)
    assert len(calls) == len(set(calls)) == len(llama.candidates) * len(llama.prompts)


def test_one_answer_that_does_not_fit_the_memory_is_an_error(llama, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Batch, "_step", no_memory)
    with pytest.raises(BackendError, match="does not hold one completion of 24 tokens"):
        llama.backend.generate(llama.candidates[:2], llama.prompts, GREEDY)


def test_without_a_space_the_bare_model_answers(llama, tmp_path):
    backend = TorchBackend(llama.model, device="cpu")
    rows = backend.generate(np.empty((2, 0)), llama.prompts, GREEDY)
    assert rows[0] == rows[1]
    hardly_any = SvdLora.from_pretrained(make_adapter(tmp_path, llama.model, strength=1e-6))
    ids = [backend.encode(prompt) for prompt in llama.prompts]
    expected = Reference(llama.model, hardly_any).complete(np.zeros(hardly_any.dim), ids, GREEDY.max_tokens)
    assert [list(answer.token_ids) for answer in rows[0]] == expected
    with pytest.raises(ValueError, match=r"expected \(population, 0\)"):
        backend.generate(np.zeros((1, 3)), llama.prompts, GREEDY)


def test_bfloat16_is_near_float32_and_its_update_is_not_lost(llama):
    half = TorchBackend(llama.model, llama.space, device="cpu", dtype="bfloat16")
    sequences = [(llama.backend.encode(prompt), (5, 6, 7)) for prompt in llama.prompts]
    whole, rough = (np.array(engine.score(llama.candidates, sequences)) for engine in (llama.backend, half))
    assert 0.0 < np.abs(whole - rough).mean() < 0.1 * np.abs(whole - whole.mean(axis=0)).mean()
    assert half.generate(llama.candidates, llama.prompts, GREEDY)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.1), ("int4", 1.0)])
def test_quantised_weights_answer_as_their_float_values_do(llama, tmp_path, kind, error):
    quantised = TorchBackend(llama.model, llama.space, device="cpu", quantization=kind)
    model = write_dequantised(quantised, tmp_path)
    equal = Subject(lambda: quantised, model, llama.space)
    for claim in PARITY:
        claim(equal)
    sequences = [(llama.backend.encode(prompt), (5, 6, 7)) for prompt in llama.prompts]
    whole, rough = (np.array(engine.score(llama.candidates, sequences)) for engine in (llama.backend, quantised))
    assert 0.0 < np.abs(whole - rough).mean() < error


def write_dequantised(backend, folder):
    """Write the model with the values that its quantised weights stand for."""
    loaded = backend._engine.model
    weights = {name.replace(".base.", "."): value for name, value in loaded.state_dict().items()}
    plain = {name: value if type(value) is torch.Tensor else value.dequantize() for name, value in weights.items()}
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(plain)
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder / "plain")
    backend._engine.codec.tokenizer.save_pretrained(folder / "plain")
    return folder / "plain"


def test_loading_and_quantising_is_quiet(llama):
    code = (
        "import sys; from esalign_torch import TorchBackend; "
        "backend = TorchBackend(sys.argv[1], device='cpu', quantization='int4'); print(backend.encode('3 + 4'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(llama.model)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("(")


def test_missing_torchao_names_the_extra(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingPackageError, match=r'pip install "esalign\[quantize\]"'):
        TorchBackend(llama.model, llama.space, device="cpu", quantization="int8")


def test_threads_are_set_on_request_only(llama):
    before = torch.get_num_threads()
    TorchBackend(llama.model, device="cpu")
    assert torch.get_num_threads() == before
    try:
        TorchBackend(llama.model, device="cpu", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_stop_strings_are_found_across_the_borders_of_tokens(llama):
    """Every two characters, as a stop string, end the answer with the token that completes them."""
    text = "12 + 3 = 15, naïve 🙂🙃 東京"
    ids = llama.backend.encode(text)
    codec = llama.backend._engine.codec
    for at in range(len(text) - 1):
        stop = text[at : at + 2]
        finder = StopStrings(codec, (stop,))
        first = next(n for n in range(1, len(ids) + 1) if stop in codec.decode(ids[:n]))
        found = next(n for n in range(1, len(ids) + 1) if finder.may_complete(ids[n - 1]) and finder.completed(ids[:n]))
        assert found == first, stop
        assert codec.complete(list(ids[:found]), (stop,)).text == text[: text.index(stop)]


def test_special_tokens_in_stop_strings_stop(tmp_path):
    tiny = make_tiny(tmp_path, eos=(1,))
    backend = TorchBackend(tiny.model, device="cpu")
    tokenizer = load_tokenizer(str(tiny.model))
    check_special_stops(backend, tokenizer, [f"{n} + {n} =" for n in range(12)])


def test_a_tokenizer_that_appends_its_end_does_not_end_prompts(copied):
    plain = TorchBackend(copied, device="cpu").encode("2 + 2 =")
    append_end(copied)
    assert load_tokenizer(str(copied))("2 + 2 =")["input_ids"][-1] == 1
    assert TorchBackend(copied, device="cpu").encode("2 + 2 =") == plain


def test_a_stop_string_reads_few_answers(llama):
    codec = llama.backend._engine.codec
    finder = StopStrings(codec, ("\n",))
    visible = sum(map(finder.may_complete, range(codec.vocab)))
    assert visible < 0.6 * codec.vocab  # this vocabulary is half of broken bytes, which may be anything


def test_a_tokenizer_without_padding_token_will_do(llama, copied):
    drop_tokenizer_entry(copied, "pad_token")
    backend = TorchBackend(copied, llama.space, device="cpu")
    assert backend._engine.codec.tokenizer.pad_token is None
    assert ids_of(backend.generate(llama.candidates, llama.prompts, GREEDY)) == ids_of(llama.greedy)


def test_texts_get_the_special_tokens_of_the_tokenizer_and_chats_those_of_the_template(tmp_path):
    model = make_model(tmp_path / "model", tokenizer={"bos": True})
    backend = TorchBackend(model, device="cpu")
    tokenizer = backend._engine.codec.tokenizer
    assert backend.encode("3 + 4")[0] == tokenizer.bos_token_id
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": "3 + 4"}]
    assert tokenizer.decode(backend.encode(chat)) == "<|system|>Add.<|end|><|user|>3 + 4<|end|><|assistant|>"


def test_chat_template_gets_its_keyword_arguments(copied):
    (copied / "chat_template.jinja").write_text("{{ messages[0]['content'] }}{% if think %} think{% endif %}")
    chat = [{"role": "user", "content": "3"}]
    assert TorchBackend(copied, device="cpu").encode(chat) == TorchBackend(copied, device="cpu").encode("3")
    thinking = TorchBackend(copied, device="cpu", chat_template_kwargs={"think": True})
    assert thinking.encode(chat) == thinking.encode("3 think")


def test_a_chat_without_template_is_an_error(tmp_path):
    backend = TorchBackend(make_model(tmp_path, tokenizer={"chat_template": False}), device="cpu")
    with pytest.raises(BackendError, match=r"prompt 1 is a chat, but the tokenizer .* has no chat template"):
        backend.generate(np.empty((1, 0)), ["3", [{"role": "user", "content": "3"}]], GREEDY)


def test_a_chat_that_its_template_refuses_is_an_error(copied):
    (copied / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BackendError, match=r"does not fit the chat template .*: roles must alternate"):
        TorchBackend(copied, device="cpu").encode([{"role": "user", "content": "3"}])


@pytest.mark.parametrize("claim", PARITY, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("deepseek_v3", ("kv_b_proj", "q_b_proj", "o_proj")), ("qwen2_moe", ATTENTION)],
)
def test_attention_beside_experts_equals_the_folded_adapter(tmp_path, architecture, targets, claim):
    """DeepSeek's kv_b_proj sees one dimension more than other layers."""
    claim(make_subject(tmp_path, architecture, targets=targets))


def test_empty_answers_have_empty_scores(llama):
    rows = llama.backend.score(llama.candidates[:2], [((3, 4), ()), ((3, 4), (5,))])
    assert [[part.shape for part in row] for row in rows] == [[(0,), (1,)]] * 2
