"""Distillation without gradients: what candidates are judged by cannot be hacked, and follows the teacher.

One lab for all: a student with its space and engine, and a teacher that lies in the space, at a known search vector.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_model, make_tiny
from runs import esalign, reproducible, write_run
from watching import watch

from esalign.data import MiniBatches
from esalign.distill.divergence import coarsen, reverse_kl
from esalign.distill.fitness import make_fitness
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
BUDGETS = pytest.mark.parametrize("budget", [0.02, 0.0], ids=["teacher helps", "student alone"])


@dataclass(frozen=True)
class Lab:
    """What the tests share; ``target`` is the search vector of the teacher, shape (dim,)."""

    model: Path
    adapter: Path
    teacher: Path
    space: SvdLora
    target: Any
    backend: Any

    @property
    def start(self):
        return np.zeros(self.space.dim)

    def draw(self, population, spread):
        """Return candidates, shape (population, dim)."""
        return np.random.default_rng(0).standard_normal((population, self.space.dim)) * spread

    def fitness(self, **options):
        """Return a fitness of 8 problems, whose rollouts are drawn by a trust region unless told otherwise."""
        batches, sampling = MiniBatches(EXAMPLES, seed=0), Sampling(max_tokens=10)
        model = options.pop("model", str(self.model))
        parts = FitnessParts(self.backend, batches, None, sampling, seed=3, model=model, space=self.space)
        settings = {"prompts": 8, "teacher": str(self.teacher), "dtype": "float32", "device": "cpu"}
        return make_fitness(parts, **(settings | options))

    def prepared(self, **options):
        """Return a fitness whose first rollouts, of the start, are drawn."""
        fitness = self.fitness(**options)
        fitness.prepare(self.start, 1)
        return fitness


def load(model, adapter=None):
    return load_model("a model", str(model), adapter and str(adapter), dtype="float32", device="cpu").model


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    tiny = make_tiny(folder, rank=2, initializer_range=0.1)
    space = SvdLora.from_pretrained(tiny.adapter)
    target = np.random.default_rng(1).standard_normal(space.dim) * 0.4
    loaded = load_model(
        "student", str(tiny.model), str(space.save_pretrained(target, folder / "target")), dtype="float32", device="cpu"
    )
    loaded.model.merge_and_unload().save_pretrained(folder / "teacher")
    loaded.tokenizer.save_pretrained(folder / "teacher")
    backend = load_backend("torch", model=str(tiny.model), space=space, dtype="float32", device="cpu")
    yield Lab(tiny.model, tiny.adapter, folder / "teacher", space, target, backend)
    backend.close()


def count_tokens(fitness):
    """Return the tokens of the prompts and of the completions that all candidates share."""
    prompts = sum(len(rollout.prompt_ids) for rollout in fitness._rollouts)
    return prompts, sum(len(rollout.token_ids) for rollout in fitness._rollouts)


# --- what the fitness is ---


def nats_by_definition(student, teacher, rollout, vocabulary, support):
    """Return the reverse KL at each prefix of a rollout, from plain logits of both models, shape (tokens,)."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
    predicting = slice(len(rollout.prompt_ids) - 1, -1)
    with torch.no_grad():
        ours, theirs = (vocabulary.logprobs(model(ids).logits[0, predicting]).double() for model in (student, teacher))
    if support is not None:
        ours, theirs = coarsen(ours, rollout.support), coarsen(theirs, rollout.support)
    return reverse_kl(ours, theirs)


@BUDGETS
@pytest.mark.parametrize("support", [8, None])
def test_fitness_is_minus_the_reverse_kl_of_forward_passes(lab, tmp_path, budget, support):
    fitness = lab.prepared(budget=budget, support=support)
    [candidate] = lab.draw(1, spread=0.3)
    [found] = fitness.evaluate(candidate[None]).fitness

    student, teacher = load(lab.model, lab.space.save_pretrained(candidate, tmp_path)), load(lab.teacher)
    vocabulary = fitness._source.vocabulary
    nats = [nats_by_definition(student, teacher, rollout, vocabulary, support) for rollout in fitness._rollouts]
    # the engine's head has rows behind the tokenizer's last id, whose mass the tail holds
    assert -found == pytest.approx(float(torch.cat(nats).mean()), rel=2e-2)


def test_ends_that_only_one_of_the_models_has_are_merged(lab):
    assert lab.fitness()._source.vocabulary.merged


@BUDGETS
def test_fitness_rises_towards_the_teacher_is_zero_there_and_falls_behind(lab, budget):
    steps = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5])  # of the way from the start to the teacher
    start, *between, at_teacher, behind = lab.prepared(budget=budget).evaluate(steps[:, None] * lab.target).fitness
    assert start < -0.01
    assert (np.diff([start, *between, at_teacher]) > 0).all()
    assert at_teacher == pytest.approx(0.0, abs=1e-3)
    assert behind < at_teacher


@BUDGETS
def test_fitness_is_never_above_zero(lab, budget):
    values = lab.prepared(budget=budget).evaluate(np.linspace(0, 1.5, 6)[:, None] * lab.target).fitness
    assert (values <= 1e-7).all()  # a KL of float32 log-probabilities rounds to either side of zero


# --- what cannot be hacked ---


def test_the_sampled_log_ratio_would_prefer_one_that_flees_and_the_fitness_does_not(lab):
    """On fixed completions, log p_S - log p_T of the drawn tokens is least for a candidate that flees them."""
    fitness = lab.prepared()
    candidates = np.stack([lab.target, -6.0 * lab.target])  # at the teacher, and far away
    rows = lab.backend.score(candidates, [(rollout.prompt_ids, rollout.token_ids) for rollout in fitness._rollouts])
    at_teacher, fled = (np.concatenate(row).mean() for row in rows)
    assert fled < at_teacher
    judged_at_teacher, judged_fled = fitness.evaluate(candidates).fitness
    assert judged_at_teacher > judged_fled + 0.05


def test_no_candidate_ever_generates_so_length_cannot_be_hacked(lab, monkeypatch):
    calls = []
    watch(monkeypatch, lab.backend, "generate", lambda *_, **__: calls.append("generate"))
    watch(monkeypatch, lab.backend, "score", lambda *_, **__: calls.append("score"))
    fitness = lab.prepared(budget=0.0)
    assert calls == ["generate"]
    fitness.evaluate(lab.draw(4, spread=1.0))
    assert calls == ["generate", "score"]


def test_all_candidates_are_judged_on_the_same_text(lab):
    fitness = lab.prepared(budget=0.0)
    candidates = lab.draw(4, spread=1.0)
    together = fitness.evaluate(candidates)
    assert together.scored_tokens == 4 * sum(count_tokens(fitness))
    one_by_one = [fitness.evaluate(candidate[None]).fitness[0] for candidate in candidates]
    assert np.allclose(together.fitness, one_by_one, atol=1e-5)


@pytest.mark.parametrize(
    ("shift", "least", "most"),
    [
        pytest.param(0.0, -1e-6, 1e-6, id="as likely as the teacher's"),
        pytest.param(2.0, 1e-3, np.inf, id="too early"),
        pytest.param(-2.0, 1e-3, np.inf, id="too late"),
    ],
)
def test_an_end_is_best_where_the_teacher_has_it(lab, shift, least, most):
    """A candidate can only move the end's probability at each prefix, here by ``shift`` nats before the softmax."""
    fitness = lab.prepared(support=None)
    vocabulary, rollouts = fitness._source.vocabulary, fitness._rollouts
    teacher = torch.cat([rollout.teacher for rollout in rollouts]).double()
    asked = torch.from_numpy(np.concatenate([vocabulary.with_ends(r.support) for r in rollouts]))
    as_teacher = torch.cat([teacher[:, :-1], torch.full((len(teacher), len(vocabulary.merged)), -torch.inf)], dim=1)
    shifted = torch.where(asked == vocabulary.end, as_teacher + shift, as_teacher).log_softmax(dim=-1)
    assert least <= fitness._divergence(shifted, asked, teacher).mean() <= most


# --- rollouts, and what they cost ---


def test_the_teacher_runs_where_rollouts_are_drawn_and_nowhere_else(lab):
    fitness = lab.fitness(refresh=2)
    calls = []
    fitness._source.pair.teacher.register_forward_hook(lambda *_: calls.append("teacher"))
    after = []
    for generation in (1, 2, 3):
        fitness.prepare(lab.start, generation)
        after.append(len(calls))
        fitness.evaluate(np.zeros((3, lab.space.dim)))
    first, second, third = after
    assert 0 < first == second < third == len(calls)


def test_tokens_are_counted_once_where_they_were_spent(lab):
    fitness = lab.fitness(refresh=2)
    spent = []
    for generation in (1, 2):
        fitness.prepare(lab.start, generation)
        evaluation = fitness.evaluate(np.zeros((3, lab.space.dim)))
        spent.append((evaluation.generated_tokens, evaluation.scored_tokens))
    prompts, completions = count_tokens(fitness)
    assert spent == [(completions, 3 * (completions + prompts)), (0, 3 * (completions + prompts))]


def test_rollouts_are_of_the_mean(lab):
    source = lab.fitness(budget=1e-12)._source

    def drawn_from(mean):
        return [rollout.token_ids for rollout in source.draw(mean, [(5, 6, 7)] * 4, step=0, seed=1)]

    assert drawn_from(lab.start) == drawn_from(lab.start) != drawn_from(lab.target)


def test_setting_the_student_equals_loading_its_adapter(lab, tmp_path):
    expected, student = (
        load(lab.model, lab.space.save_pretrained(vector, tmp_path / name))
        for name, vector in (("there", lab.target), ("start", lab.start))
    )
    ids = torch.arange(20)[None]
    assert not torch.allclose(student(ids).logits, expected(ids).logits)
    set_student(student, lab.space, lab.target)
    assert torch.equal(student(ids).logits, expected(ids).logits)


@BUDGETS
def test_a_fitness_resumes_with_the_rollouts_in_use(lab, budget, tmp_path):
    candidates = lab.draw(3, spread=0.2)

    def values(fitness, generations):
        for generation in generations:
            fitness.prepare(lab.start, generation)
            yield fitness.evaluate(candidates).fitness

    whole = list(values(lab.fitness(budget=budget, refresh=2), range(1, 5)))
    stopped = lab.fitness(budget=budget, refresh=2)
    before = list(values(stopped, [1]))
    save_state(stopped.state_dict(), tmp_path / "state.npz")
    resumed = lab.fitness(budget=budget, refresh=2)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    assert np.array_equal([*before, *values(resumed, range(2, 5))], whole)


# --- ends ---

SCORES = torch.tensor([[0.5, 0.1, 0.05, 0.15], [0.5, 0.2, 0.05, 0.15]]).log()
WANTED = torch.tensor([[7, 2, 8, 9], [7, 3, 8, 9]])  # the last two are other ends


def test_the_mass_of_other_ends_joins_the_end_where_it_is_asked_for():
    assert torch.allclose(SharedVocabulary(9, 2, (3, 4)).fold_ends(SCORES, WANTED).exp()[0], torch.tensor([0.5, 0.3]))


def test_the_mass_of_other_ends_is_left_to_the_tail_elsewhere():
    assert torch.allclose(SharedVocabulary(9, 2, (3, 4)).fold_ends(SCORES, WANTED).exp()[1], torch.tensor([0.5, 0.2]))


def test_without_other_ends_nothing_is_folded():
    assert torch.equal(SharedVocabulary(9, None).fold_ends(SCORES, WANTED), SCORES)


def test_the_shared_vocabulary_of_one_model_keeps_its_first_end():
    assert SharedVocabulary.of_one(9, [4, 2, 3]) == SharedVocabulary(9, 4, (2, 3))


# --- refusals ---


@pytest.mark.parametrize(
    ("budget", "message"),
    [(0.0, r"the engine and teacher .* cut .* into different tokens"), (0.02, "the tokenizers differ")],
)
def test_a_teacher_of_another_tokenizer_is_refused(lab, tmp_path, budget, message):
    other = make_model(tmp_path / "other", tokenizer={"vocab_size": 290})
    with pytest.raises(DistillationError, match=message):
        lab.fitness(budget=budget, teacher=str(other))


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
        lab.fitness(**options)


def test_a_gguf_model_needs_a_student_for_a_budget(lab):
    with pytest.raises(DistillationError, match=r"name the original in fitness\.options\.student"):
        lab.fitness(model="model.gguf")


def test_a_teacher_that_gives_no_mass_is_named(lab):
    fitness = lab.prepared()
    rollout = fitness._rollouts[0]
    fitness._rollouts = [replace(rollout, teacher=torch.full_like(rollout.teacher, -torch.inf))]
    with pytest.raises(DistillationError, match="reverse KL is inf"):
        fitness.evaluate(np.zeros((1, lab.space.dim)))


# --- from the command line ---


def test_a_run_comes_closer_to_the_teacher(lab, tmp_path):
    options = {"teacher": str(lab.teacher), "budget": 0.02, "dtype": "float32", "device": "cpu"}
    file = write_run(
        tmp_path,
        fitness={"name": "distillation", "prompts": 8, "options": options},
        model={"path": str(lab.model), "adapter": str(lab.adapter)},
        run__generations=12,
        run__evaluate_every=12,
        optimizer__population=10,
        optimizer__sigma=0.1,
    )
    done = esalign("run", file)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small"
    nats = [row["reverse_kl"] for row in reproducible(folder)[1:]]
    assert np.mean(nats[-3:]) < np.mean(nats[:3])
    assert json.loads((folder / "result.json").read_text())["verification"]["good"]
