"""Distillation without gradients: what candidates are judged by cannot be hacked, and follows the teacher."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import make_tiny
from runs import esalign, reproducible, write_run

from esalign.data import MiniBatches
from esalign.distill.divergence import coarsen, reverse_kl
from esalign.distill.fitness import extended_support, fold_ends, make_fitness
from esalign.distill.sources import set_student
from esalign.distill.vocabulary import SharedVocabulary
from esalign.engines.loading import load_model
from esalign.errors import ConfigError, DistillationError
from esalign.fitness import FitnessParts
from esalign.registry import load_backend
from esalign.run.checkpoint import load_state, save_state
from esalign.space import SvdLora
from esalign.types import Example, Sampling

EXAMPLES = [Example(f"{a} + {b} =") for a in range(6) for b in range(6)]
SAMPLING = Sampling(max_tokens=10)


class Watched:
    """An engine whose calls are counted; all else is the engine's own."""

    def __init__(self, backend):
        self._backend, self.calls = backend, []

    def __getattr__(self, name):
        if name in ("generate", "score"):
            self.calls.append(name)
        return getattr(self._backend, name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A student with its space and engine, and a teacher that lies in the space, at a known search vector."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("lab")
    tiny = make_tiny(folder, rank=2, initializer_range=0.1)
    space = SvdLora.from_pretrained(tiny.adapter)
    target = np.random.default_rng(1).standard_normal(space.dim) * 0.4
    space.save_pretrained(target, folder / "target")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.model), folder / "target")
    model.merge_and_unload().save_pretrained(folder / "teacher")
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(folder / "teacher")
    backend = load_backend("torch", model=str(tiny.model), space=space, dtype="float32", device="cpu")
    yield {"model": str(tiny.model), "teacher": str(folder / "teacher"), "space": space, "target": target}, backend
    backend.close()


def fitness_of(lab, model=None, **options):
    parts, backend = lab
    held = FitnessParts(
        backend,
        MiniBatches(EXAMPLES, seed=0),
        None,
        SAMPLING,
        seed=3,
        model=model or parts["model"],
        space=parts["space"],
    )
    settings = {"prompts": 8, "teacher": parts["teacher"], "dtype": "float32", "device": "cpu", **options}
    return make_fitness(held, **settings)


@pytest.mark.parametrize("budget", [0.02, 0.0])
@pytest.mark.parametrize("support", [8, None])
def test_fitness_is_the_reverse_kl_of_forward_passes(lab, budget, support):
    """Against the definition, computed from plain logits of the candidate's model, ends merged."""
    parts, _ = lab
    fitness = fitness_of(lab, budget=budget, support=support)
    space = parts["space"]
    fitness.prepare(np.zeros(space.dim), 1)
    candidate = np.random.default_rng(0).standard_normal(space.dim) * 0.3
    [found] = fitness.evaluate(candidate[None]).fitness

    space_folder = space.save_pretrained(candidate, parts["teacher"] + "-candidate")
    student = load_model("student", parts["model"], str(space_folder), dtype="float32", device="cpu").model
    teacher = load_model("teacher", parts["teacher"], None, dtype="float32", device="cpu").model
    vocabulary = fitness._source.vocabulary
    assert vocabulary.merged
    nats = []
    for rollout in fitness._rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        at = slice(len(rollout.prompt_ids) - 1, -1)
        with torch.no_grad():
            ours, theirs = (vocabulary.logprobs(model(ids).logits[0, at]).double() for model in (student, teacher))
        if support is not None:
            ours, theirs = coarsen(ours, rollout.support), coarsen(theirs, rollout.support)
        nats.append(reverse_kl(ours, theirs))
    # the engine's head has rows behind the tokenizer's last id, whose mass the tail holds
    assert -found == pytest.approx(float(torch.cat(nats).mean()), rel=2e-2)


@pytest.mark.parametrize("budget", [0.02, 0.0])
def test_fitness_rises_towards_the_teacher_and_is_zero_there(lab, budget):
    parts, _ = lab
    fitness = fitness_of(lab, budget=budget)
    fitness.prepare(np.zeros(parts["space"].dim), 1)
    path = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    values = fitness.evaluate(path[:, None] * parts["target"]).fitness
    assert (np.diff(values[:5]) > 0).all()
    assert values[5] < values[4]
    assert abs(values[4]) < 1e-3
    assert values[0] < -0.01
    assert (values <= 1e-7).all()  # a KL of float32 log-probabilities rounds to either side of zero


def test_the_sampled_log_ratio_would_be_inverted_where_the_fitness_is_not(lab):
    """On fixed answers, log p_S - log p_T of the drawn tokens is least for a candidate that flees them."""
    parts, backend = lab
    fitness = fitness_of(lab)
    fitness.prepare(np.zeros(parts["space"].dim), 1)
    sequences = [(rollout.prompt_ids, rollout.token_ids) for rollout in fitness._rollouts]
    away = -6.0 * parts["target"]
    candidates = np.stack([parts["target"], away])
    at_teacher, fled = (np.concatenate(row).mean() for row in backend.score(candidates, sequences))
    assert fled < at_teacher  # so minus the sampled ratio prefers the one that fled ...
    judged = fitness.evaluate(candidates).fitness
    assert judged[0] > judged[1] + 0.05  # ... and the fitness does not


def test_length_cannot_be_hacked_as_no_candidate_ever_generates(lab):
    parts, backend = lab
    watched = Watched(backend)
    fitness = fitness_of((parts, watched), budget=0.0)
    fitness.prepare(np.zeros(parts["space"].dim), 1)
    assert watched.calls == ["generate"]
    candidates = np.random.default_rng(0).standard_normal((4, parts["space"].dim))
    first = fitness.evaluate(candidates)
    assert watched.calls == ["generate", "score"]
    tokens = sum(len(r.prompt_ids) + len(r.token_ids) for r in fitness._rollouts)
    assert first.scored_tokens == 4 * tokens  # the same text for all
    one_by_one = [fitness.evaluate(candidate[None]).fitness[0] for candidate in candidates]
    assert np.allclose(first.fitness, one_by_one, atol=1e-5)


def test_an_end_that_comes_too_early_or_too_late_is_punished_alike(lab):
    """A candidate can only move the probability of the end at each prefix, and the teacher's is the best."""
    parts, _ = lab
    fitness = fitness_of(lab, support=None)
    fitness.prepare(np.zeros(parts["space"].dim), 1)
    vocabulary, rollouts = fitness._source.vocabulary, fitness._rollouts
    teacher = torch.cat([rollout.teacher for rollout in rollouts]).double()
    wanted = torch.from_numpy(np.concatenate([extended_support(r.support, vocabulary.merged) for r in rollouts]))
    truth = torch.cat([teacher[:, :-1], torch.full((len(teacher), len(vocabulary.merged)), -torch.inf)], dim=1)
    is_end = wanted == vocabulary.end
    values = []
    for shift in (-2.0, 0.0, 2.0):
        scores = torch.where(is_end, truth + shift, truth).log_softmax(dim=-1)
        values.append(fitness._divergence(scores, wanted, teacher).mean())
    assert values[1] < 1e-6
    assert min(values[0], values[2]) > 1e-3


def test_teacher_runs_in_prepare_and_nowhere_else(lab):
    parts, _ = lab
    fitness = fitness_of(lab, refresh=2)
    calls = []
    fitness._source.pair.teacher.register_forward_hook(lambda *_: calls.append(1))
    mean = np.zeros(parts["space"].dim)
    fitness.prepare(mean, 1)
    drawn = len(calls)
    assert drawn > 0
    fitness.evaluate(np.zeros((3, parts["space"].dim)))
    fitness.prepare(mean, 2)
    fitness.evaluate(np.zeros((3, parts["space"].dim)))
    assert len(calls) == drawn
    fitness.prepare(mean, 3)
    assert len(calls) > drawn


def test_tokens_are_counted_once_where_they_were_spent(lab):
    parts, _ = lab
    fitness = fitness_of(lab, refresh=2)
    candidates = np.zeros((3, parts["space"].dim))
    spent = []
    for generation in (1, 2):
        fitness.prepare(candidates[0], generation)
        evaluation = fitness.evaluate(candidates)
        spent.append((evaluation.generated_tokens, evaluation.scored_tokens))
    tokens = sum(len(r.token_ids) for r in fitness._rollouts)
    prompts = sum(len(r.prompt_ids) for r in fitness._rollouts)
    assert spent == [(tokens, 3 * (tokens + prompts)), (0, 3 * (tokens + prompts))]


def test_rollouts_are_of_the_mean(lab):
    parts, _ = lab
    fitness = fitness_of(lab, budget=1e-12)
    answers = []
    for mean in (np.zeros(parts["space"].dim), parts["target"], np.zeros(parts["space"].dim)):
        rollouts = fitness._source.draw(mean, [(5, 6, 7)] * 4, step=0, seed=1)
        answers.append([rollout.token_ids for rollout in rollouts])
    assert answers[0] == answers[2] != answers[1]


def test_setting_the_student_equals_loading_its_adapter(lab, tmp_path):
    parts, _ = lab
    space, vector = parts["space"], parts["target"]
    folder = space.save_pretrained(vector, tmp_path / "there")
    start = space.save_pretrained(np.zeros(space.dim), tmp_path / "start")
    expected = load_model("student", parts["model"], str(folder), dtype="float32", device="cpu").model
    student = load_model("student", parts["model"], str(start), dtype="float32", device="cpu").model
    ids = torch.arange(20)[None]
    assert not torch.allclose(student(ids).logits, expected(ids).logits)
    set_student(student, space, vector)
    assert torch.equal(student(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("budget", [0.02, 0.0])
def test_fitness_resumes_with_the_rollouts_in_use(lab, budget, tmp_path):
    parts, _ = lab
    candidates = np.random.default_rng(0).standard_normal((3, parts["space"].dim)) * 0.2
    whole, part = fitness_of(lab, budget=budget, refresh=2), fitness_of(lab, budget=budget, refresh=2)
    mean = np.zeros(parts["space"].dim)
    values = []
    for generation in range(1, 5):
        whole.prepare(mean, generation)
        values.append(whole.evaluate(candidates).fitness)
    part.prepare(mean, 1)
    part.evaluate(candidates)
    save_state(part.state_dict(), tmp_path / "state.npz")
    resumed = fitness_of(lab, budget=budget, refresh=2)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    for generation in range(2, 5):
        resumed.prepare(mean, generation)
        assert np.array_equal(resumed.evaluate(candidates).fitness, values[generation - 1])


def test_mass_of_other_ends_joins_the_end_or_the_tail():
    scores = torch.tensor([[0.5, 0.1, 0.05, 0.15], [0.5, 0.2, 0.05, 0.15]]).log()
    wanted = torch.tensor([[7, 2, 8, 9], [7, 3, 8, 9]])
    folded = fold_ends(scores, wanted, 2, 2).exp()
    assert torch.allclose(folded, torch.tensor([[0.5, 0.3], [0.5, 0.2]]))
    assert torch.equal(fold_ends(scores, wanted, None, 0), scores)


def test_teacher_of_another_tokenizer_is_refused_by_the_engine_s_tokens(lab, tmp_path):
    from models import make_model

    other = make_model(tmp_path / "other", tokenizer={"vocab_size": 290})
    with pytest.raises(DistillationError, match=r"the engine and teacher .* cut .* into different tokens"):
        fitness_of(lab, budget=0.0, teacher=str(other))
    with pytest.raises(DistillationError, match="the tokenizers differ"):
        fitness_of(lab, teacher=str(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -0.1}, "fitness.options.budget is -0.1, expected at least 0"),
        ({"support": 0}, "fitness.options.support is 0, expected at least 1, or null"),
        ({"refresh": 0}, "fitness.options.refresh is 0"),
    ],
)
def test_wrong_options_are_refused(lab, options, message):
    with pytest.raises(ConfigError, match=message):
        fitness_of(lab, **options)


def test_a_gguf_model_needs_a_student_for_a_budget(lab):
    with pytest.raises(DistillationError, match=r"name the original in fitness\.options\.student"):
        fitness_of(lab, model="model.gguf")


def test_an_engine_that_gives_no_mass_is_named(lab):
    parts, _ = lab
    fitness = fitness_of(lab)
    fitness.prepare(np.zeros(parts["space"].dim), 1)
    rollout = fitness._rollouts[0]
    fitness._rollouts = [replace(rollout, teacher=torch.full_like(rollout.teacher, -torch.inf))]
    with pytest.raises(DistillationError, match="reverse KL is inf"):
        fitness.evaluate(np.zeros((1, parts["space"].dim)))


def test_a_run_distils_without_gradients_from_the_command_line(lab, tmp_path):
    """CMA-ES on the engine: the mean comes closer to the teacher, and the run resumes as any other."""
    parts, _ = lab
    options = {"teacher": parts["teacher"], "budget": 0.02, "dtype": "float32", "device": "cpu"}
    file = write_run(
        tmp_path,
        fitness={"name": "distillation", "prompts": 8, "options": options},
        model={"path": parts["model"], "adapter": parts["model"].removesuffix("model") + "adapter"},
        run__generations=12,
        run__evaluate_every=12,
        optimizer__population=10,
        optimizer__sigma=0.1,
    )
    done = esalign("run", file)
    assert done.returncode == 0, done.stderr
    rows = reproducible(tmp_path / "runs" / "small")
    nats = [row["reverse_kl"] for row in rows[1:]]
    assert np.mean(nats[-3:]) < np.mean(nats[:3])
    assert json.loads((tmp_path / "runs" / "small" / "result.json").read_text())["verification"]["good"]


def test_shared_vocabulary_of_one_keeps_the_first_end():
    assert SharedVocabulary.of_one(9, [4, 2, 3]) == SharedVocabulary(9, 4, (2, 3))
