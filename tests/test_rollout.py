"""Two models in lock-step: every recorded number equals what plain forward passes of the same text give."""

from math import inf

import numpy as np
import pytest
import torch
from distill_models import load_pair, make_pair_folders

from esalign.distill.behaviour import Schedule, Speculative, Temperature, TrustRegion, student_alone
from esalign.distill.decoder import Decoder
from esalign.distill.divergence import coarsen, reverse_kl
from esalign.distill.forced import completion_logits, in_batches
from esalign.distill.models import make_pair
from esalign.distill.rollout import RolloutOptions, roll_out
from esalign.distill.trust_region import trust_region_blend
from esalign.distill.vocabulary import SharedVocabulary
from esalign.engines.loading import LoadedModel
from esalign.engines.sampling import draw_uniforms, invert
from esalign.errors import DistillationError

PROMPTS = [(5, 9, 200), (7,), (100, 101, 102, 103, 104, 105), (30, 31), (5, 9, 200)]
TRB = TrustRegion(Schedule(0.05))


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma2", "mistral"])
def pair(request, tmp_path_factory):
    return load_pair(make_pair_folders(tmp_path_factory.mktemp("pair"), request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_pair(make_pair_folders(tmp_path_factory.mktemp("pair")))


@torch.no_grad()
def distribution(model, vocabulary, ids):
    return vocabulary.logprobs(model(torch.tensor([ids])).logits[0, -1])


def test_lock_step_rollout_equals_plain_forward_passes_token_by_token(pair):
    """Caches, left padding, positions and rows that leave the batch: nothing of it may show."""
    options = RolloutOptions(max_tokens=20, support=8)
    rollouts = roll_out(pair, PROMPTS, TRB, options, seed=3)
    uniforms = torch.from_numpy(draw_uniforms(3, len(PROMPTS), 20, np.float64))
    assert len({len(rollout.token_ids) for rollout in rollouts}) > 1
    for row, rollout in enumerate(rollouts):
        assert rollout.prompt_ids == PROMPTS[row]
        ids = list(rollout.prompt_ids)
        for at, token in enumerate(rollout.token_ids):
            student, teacher = (distribution(m, pair.vocabulary, ids) for m in (pair.student, pair.teacher))
            blend = trust_region_blend(student[None], teacher[None], 0.05)
            assert int(invert(blend.logprobs.exp(), uniforms[row, at : at + 1])) == token
            assert abs(float(blend.beta) - float(rollout.stats["beta"][at])) < 1e-3
            assert float(rollout.stats["kl_student"][at]) <= 0.05 + 1e-6
            support = rollout.support[at]
            assert set(support.tolist()) == set(student.topk(8).indices.tolist())
            assert torch.allclose(rollout.teacher[at], coarsen(teacher, support), atol=2e-3)
            assert (
                abs(float(rollout.stats["teacher_entropy"][at] + (teacher.exp() * teacher.clamp_min(-1e9)).sum()))
                < 1e-3
            )
            ids.append(token)


def test_finished_answers_end_with_the_student_s_end_and_others_with_the_limit(llama):
    rollouts = roll_out(llama, PROMPTS * 4, TRB, RolloutOptions(max_tokens=25), seed=1)
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert (rollout.token_ids[-1] == llama.vocabulary.end) == rollout.finished
        assert llama.vocabulary.end not in rollout.token_ids[:-1]
        assert not set(llama.vocabulary.merged) & set(rollout.token_ids)
        assert rollout.finished or len(rollout.token_ids) == 25


def test_answers_do_not_depend_on_how_they_are_batched(llama):
    together = roll_out(llama, PROMPTS, TRB, RolloutOptions(max_tokens=12), seed=5)
    by_two = roll_out(llama, PROMPTS, TRB, RolloutOptions(max_tokens=12, sequences=2), seed=5)
    assert [r.token_ids for r in together] == [r.token_ids for r in by_two]


def test_seed_decides_the_answers_and_equal_prompts_get_different_ones(llama):
    options = RolloutOptions(max_tokens=12)
    first, again, other = (roll_out(llama, PROMPTS, TRB, options, seed=seed) for seed in (1, 1, 2))
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    assert [r.token_ids for r in first] != [r.token_ids for r in other]
    assert first[0].prompt_ids == first[4].prompt_ids
    assert first[0].token_ids != first[4].token_ids


class Counting:
    """A model that counts the sequences x passes that it serves."""

    def __init__(self, model):
        self._model, self.config, self.device, self.tokens, self.passes = model, model.config, model.device, 0, 0

    def __call__(self, input_ids, **options):
        self.tokens += input_ids.numel()
        self.passes += 1
        return self._model(input_ids=input_ids, **options)


@pytest.mark.parametrize("behaviour", [TRB, student_alone(), Temperature(Schedule(0.8, 5, end=1.0))])
def test_teacher_runs_once_per_token(llama, behaviour):
    from dataclasses import replace

    teacher = Counting(llama.teacher)
    prompts = [(7, 8)] * 6
    rollouts = roll_out(replace(llama, teacher=teacher), prompts, behaviour, RolloutOptions(max_tokens=15), seed=2)
    read = sum(len(r.prompt_ids) + len(r.token_ids) - 1 for r in rollouts)
    if behaviour is TRB:
        assert teacher.tokens == read
        assert teacher.passes == max(len(r.token_ids) for r in rollouts)
    else:  # the student samples alone, so the teacher reads finished answers in one pass
        assert teacher.passes == 1
        assert read <= teacher.tokens <= 6 * (2 + 15)


def test_teacher_that_reads_afterwards_judges_as_in_lock_step(llama):
    """The same answers, once with the teacher beside (a budget too small to matter), once reading afterwards."""
    options = RolloutOptions(max_tokens=15, support=8)
    beside = roll_out(llama, PROMPTS, TrustRegion(Schedule(1e-15)), options, seed=4)
    after = roll_out(llama, PROMPTS, student_alone(), options, seed=4)
    for one, other in zip(beside, after, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.support, other.support)
        assert torch.allclose(one.teacher, other.teacher, atol=1e-4)
        assert torch.allclose(one.stats["teacher_entropy"], other.stats["teacher_entropy"], atol=1e-4)


def test_full_support_keeps_the_teacher_s_whole_distribution(llama):
    rollout = roll_out(llama, PROMPTS[:1], TRB, RolloutOptions(max_tokens=5, support=None), seed=0)[0]
    assert rollout.support is None
    assert rollout.teacher.shape == (len(rollout.token_ids), llama.vocabulary.size)
    with torch.no_grad():
        logits = completion_logits(llama.teacher, [(rollout.prompt_ids, rollout.token_ids)])
    assert torch.allclose(rollout.teacher.exp(), llama.vocabulary.logprobs(logits).exp(), atol=1e-5)


def test_sequence_level_bound_holds_along_the_rollout(llama):
    """KL(P_mu || P_S) <= T eps: the log-ratio of drawn answers, averaged, estimates the left side."""
    budget, length = 0.05, 8
    options = RolloutOptions(max_tokens=length, sequences=400)
    rollouts = roll_out(llama, [(7, 8)] * 400, TrustRegion(Schedule(budget)), options, seed=9)
    spent = torch.stack([rollout.stats["kl_student"].sum() for rollout in rollouts])
    assert float(spent.max()) <= length * budget + 1e-5
    assert float(spent.mean()) > 0.2 * length * budget


def test_budgets_lead_from_the_student_to_the_teacher(llama):
    """Mean KL of the visited student distributions' sampler to the teacher falls with the budget."""
    betas = []
    for budget in (0.001, 0.05, 1.0):
        rollouts = roll_out(llama, PROMPTS, TrustRegion(Schedule(budget)), RolloutOptions(max_tokens=10), seed=1)
        betas.append(float(torch.cat([r.stats["beta"] for r in rollouts]).mean()))
    assert betas[0] < betas[1] < betas[2]
    teacher = roll_out(llama, PROMPTS, TrustRegion(Schedule(inf, 3, "constant")), RolloutOptions(max_tokens=10), seed=1)
    assert float(torch.cat([r.stats["beta"] for r in teacher]).min()) == 1.0


def test_draw_follows_the_distribution_and_never_takes_a_masked_token():
    mass = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])[None].expand(20_000, -1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    counts = invert(mass, uniforms).bincount(minlength=6) / 20_000
    assert torch.allclose(counts, torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0]), atol=0.02)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert invert(mass[:2], ends).tolist() == [1, 4]


def test_decoder_keeps_the_sequences_it_is_told_to(llama):
    with torch.no_grad():
        decoder = Decoder(llama.student, PROMPTS)
        decoder.read()
        decoder.feed(torch.tensor([3, 4, 5, 6, 7]))
        decoder.keep(torch.tensor([1, 3]))
        logits = decoder.feed(torch.tensor([8, 9]))
    for row, ids in enumerate(([7, 4, 8], [30, 31, 6, 9])):
        expected = llama.student(torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(logits[row], expected, atol=1e-4)


def test_batches_for_reading_respect_the_limit_and_lose_nothing():
    sequences = [((1,) * n, (2,) * n) for n in (1, 50, 3, 4, 2, 30)]
    batches = list(in_batches(sequences, 24))
    assert sorted(place for batch in batches for place in batch) == list(range(6))
    for batch in batches:
        longest = max(2 * len(sequences[place][0]) for place in batch)
        assert len(batch) == 1 or longest * len(batch) <= 24


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule(0.02, 4), [0.02, 0.015, 0.01, 0.005, 0.0, 0.0]),
        (Schedule(0.02, 4, "cosine"), [0.02, 0.01 + 0.01 * 0.5**0.5, 0.01, 0.01 - 0.01 * 0.5**0.5, 0.0, 0.0]),
        (Schedule(0.02, 2, "constant"), [0.02, 0.02, 0.0, 0.0]),
        (Schedule(0.02, None), [0.02] * 4),
        (Schedule(0.8, 2, end=1.0), [0.8, 0.9, 1.0, 1.0]),
        (Schedule(inf, 2, "constant"), [inf, inf, 0.0, 0.0]),
    ],
)
def test_schedules(schedule, values):
    assert [schedule.at(step) for step in range(len(values))] == pytest.approx(values)


def coins(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_speculative_mixture_is_propose_then_redraw():
    student, teacher = coins(0.5, 0.3, 0.2), coins(0.1, 0.2, 0.7)
    blend = Speculative(top=2).blend(student, teacher, 0)
    assert torch.allclose(blend.logprobs.exp(), torch.tensor([[0.05, 0.4, 0.55]], dtype=torch.float64))
    assert blend.kl_student[0] == pytest.approx(float(reverse_kl(blend.logprobs, student)))
    assert torch.equal(Speculative(top=2, steps=1).blend(student, teacher, 1).logprobs, student)


def test_temperature_sharpens_the_student_until_it_is_one():
    student, teacher = coins(0.8, 0.2), coins(0.5, 0.5)
    behaviour = Temperature(Schedule(0.5, 2, end=1.0))
    assert torch.allclose(behaviour.blend(student, teacher, 0).logprobs.exp()[0, 0], torch.tensor(0.64 / 0.68).double())
    assert torch.equal(behaviour.blend(student, teacher, 2).logprobs, student)


def test_end_ids_of_both_models_are_one_event():
    vocabulary = SharedVocabulary.of_one(5, [2, 4])
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0, 3.0, 99.0]], requires_grad=True)
    merged = vocabulary.logprobs(logits)
    plain = logits[:, :5].log_softmax(-1)
    assert merged.shape == (1, 5)
    assert merged[0, 4] == -inf
    assert float(merged.detach()[0, 2].exp()) == pytest.approx(float(plain.detach()[0, [2, 4]].exp().sum()))
    assert float(merged.detach().exp().sum()) == pytest.approx(1.0)
    merged[0, 2].backward()
    assert torch.isfinite(logits.grad).all()


def test_padding_rows_of_a_larger_head_are_trimmed(tmp_path):
    from models import make_model

    student = make_model(tmp_path / "student", seed=1)
    teacher = make_model(tmp_path / "teacher", seed=2, vocab_size=352, tokenizer={"vocab_size": 320})
    pair = load_pair((student, teacher))
    assert pair.teacher.config.vocab_size == 352
    assert pair.vocabulary.size <= 320
    rollout = roll_out(pair, PROMPTS[:2], TRB, RolloutOptions(max_tokens=4, support=None))[0]
    assert rollout.teacher.shape[1] == pair.vocabulary.size
    assert torch.allclose(rollout.teacher.logsumexp(-1), torch.zeros(len(rollout.token_ids)), atol=1e-5)


def test_different_tokenizers_are_refused_with_the_first_difference(tmp_path):
    from models import make_model

    student = make_model(tmp_path / "student")
    teacher = make_model(tmp_path / "teacher", tokenizer={"vocab_size": 290})
    with pytest.raises(DistillationError, match=r"the tokenizers differ, first at .*teacher gives it no id") as caught:
        load_pair((student, teacher))
    assert "\n" not in str(caught.value)


def test_tokenizers_with_equal_tokens_but_other_merges_are_refused():
    class Tokenizer:
        def __init__(self, ids):
            self._ids = ids

        def get_vocab(self):
            return {"a": 0, "b": 1}

        def __call__(self, text, **_):
            return {"input_ids": self._ids}

    student, teacher = LoadedModel(None, Tokenizer([0, 1]), "student"), LoadedModel(None, Tokenizer([1, 0]), "teacher")
    with pytest.raises(DistillationError, match=r"cut 'The answer is 42\.' differently"):
        make_pair(student, teacher)


def test_teacher_with_fewer_rows_than_tokens_is_refused(tmp_path):
    from models import make_model

    student = make_model(tmp_path / "student")
    teacher = make_model(tmp_path / "teacher", vocab_size=200, tokenizer={"vocab_size": 320}, eos=(1,))
    with pytest.raises(DistillationError, match=r"teacher has 200 output rows for .* token ids"):
        load_pair((student, teacher))


def test_student_ends_by_its_own_id_when_the_teacher_has_another(tmp_path):
    pair = load_pair(make_pair_folders(tmp_path, eos=(3, 90)))
    assert pair.vocabulary.end == 1
    assert set(pair.vocabulary.merged) == {40, 50, 60, 70, 3, 90}
    rollouts = roll_out(
        pair, PROMPTS * 3, TrustRegion(Schedule(inf, 1, "constant")), RolloutOptions(max_tokens=40), seed=0
    )
    assert any(rollout.finished for rollout in rollouts)
    assert {rollout.token_ids[-1] for rollout in rollouts if rollout.finished} == {1}


def test_uniforms_of_a_row_do_not_depend_on_the_others():
    for dtype in (np.float32, np.float64):
        assert np.array_equal(draw_uniforms(7, 3, 5, dtype), draw_uniforms(7, 9, 8, dtype)[:3, :5])
