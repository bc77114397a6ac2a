"""Surrogate ESSA: its objective, its bound, its accounting and its state, with a real engine."""

import numpy as np
import pytest
from models import make_tiny
from numpy.testing import assert_allclose, assert_array_equal

from esalign.data import MiniBatches
from esalign.errors import ConfigError, RewardError
from esalign.fitness import FitnessParts
from esalign.fitness.surrogate import SurrogateFitness, bounded, clipped_objective, divergence, extremes
from esalign.optimizers.cma_es import CmaEs
from esalign.registry import load_backend
from esalign.rewards.pool import RewardPool
from esalign.space import SvdLora
from esalign.types import Example, Sampling

EXAMPLES = [Example(prompt=f"{a} + {b} =", columns={}) for a in range(9) for b in range(5)]


def variety(prompts, completions, **columns):
    return [len(set(text)) / 40 for text in completions]


def always_one(prompts, completions, **columns):
    return [1.0] * len(prompts)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"), rank=2)
    space = SvdLora.from_pretrained(tiny.adapter)
    backend = load_backend("torch", model=str(tiny.model), space=space, dtype="float32", device="cpu")
    yield backend
    backend.close()


def make_fitness(engine, reward=variety, **options):
    batches = MiniBatches(EXAMPLES, seed=0)
    pool = RewardPool([(reward, 1.0)], workers=0)
    settings = {"prompts": 6, "samples": 3, "refresh": 3} | options
    return SurrogateFitness(FitnessParts(engine, batches, pool, Sampling(max_tokens=8)), **settings)


def some_candidates(engine, spread=0.3, count=5):
    return np.random.default_rng(3).normal(size=(count, engine.space.dim)) * spread


def test_objective_is_ppos_on_a_worked_example():
    # ratios 2, 1/2 and 1.1 with advantages 1, -1, 1 and clip 0.2: min(2, 1.2), min(-0.5, -0.8), min(1.1, 1.1)
    objective = clipped_objective(np.log([[2.0, 0.5, 1.1]]), np.array([1.0, -1.0, 1.0]), 0.2)
    assert_allclose(objective, [(1.2 - 0.8 + 1.1) / 3])


def test_divergence_is_the_kl_in_expectation():
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    drawn = np.repeat(np.arange(3), (1000 * old).astype(int))
    assert_allclose(divergence(np.log(new / old)[drawn][None]), (old * np.log(old / new)).sum())


def test_candidates_beyond_the_bound_rank_last_by_their_divergence():
    fitness = bounded(np.array([9.0, 0.2, 8.0, -0.3]), np.array([0.4, 0.01, 0.2, 0.05]), 0.05)
    assert_array_equal(np.argsort(-fitness), [1, 3, 2, 0])


def test_best_and_worst_come_from_each_problem_whose_rewards_differ():
    nan = np.nan
    best, worst = extremes(np.array([[0.1, 0.9, 0.5], [nan, nan, nan], [nan, 0.3, nan], [0.2, 0.2, 0.1]]))
    assert_array_equal(best, [1, 9])
    assert_array_equal(worst, [0, 11])


def test_fitness_equals_the_objective_computed_by_hand_from_the_engines_scores(engine):
    fitness = make_fitness(engine, kl_limit=1e9)
    start = np.zeros(engine.space.dim)
    fitness.prepare(start, 1)
    state = fitness.state_dict()
    candidates = some_candidates(engine)
    sequences = list(zip(state["prompts"], state["completions"], strict=True))
    rows = engine.score(np.concatenate([start[None], candidates]), sequences)
    by_hand = []
    for row in rows[1:]:
        terms = []
        for new, old, advantage in zip(row, rows[0], state["advantages"], strict=True):
            ratios = np.exp(new.astype(float) - old.astype(float))
            terms += [min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) for ratio in ratios]
        by_hand.append(np.mean(terms))
    assert_allclose(fitness.evaluate(candidates).fitness, by_hand, rtol=1e-5, atol=1e-7)


def test_the_mean_that_answered_has_no_divergence(engine):
    fitness = make_fitness(engine)
    mean = some_candidates(engine)[0]
    fitness.prepare(mean, 1)
    evaluation = fitness.evaluate(mean[None])
    assert evaluation.metrics["kl_to_rollouts"] < 1e-9


def test_answers_serve_their_generations_and_tokens_are_counted_once(engine):
    fitness = make_fitness(engine)
    generated = []
    for generation in range(1, 8):
        fitness.prepare(np.zeros(engine.space.dim), generation)
        generated.append(fitness.evaluate(some_candidates(engine)).generated_tokens)
    assert [tokens > 0 for tokens in generated] == [True, False, False, True, False, False, True]


def test_the_mean_answers_until_there_are_enough_pairs_or_tries(engine):
    def rarely(prompts, completions, **columns):
        pairs = zip(prompts, completions, strict=True)
        return [len(set(text)) / 40 if prompt.startswith("3") else 1.0 for prompt, text in pairs]

    generated = {}
    for pairs, reward in ((1, variety), (10, variety), (10, rarely)):
        fitness = make_fitness(engine, reward, pairs=pairs)
        fitness.prepare(np.zeros(engine.space.dim), 1)
        found = len(fitness.state_dict()["completions"]) // 2
        assert found == pairs if reward is variety else 1 <= found < pairs
        generated[pairs, reward] = fitness.evaluate(some_candidates(engine)).generated_tokens
    assert generated[1, variety] < generated[10, variety] < generated[10, rarely]


def test_a_run_resumed_amid_a_refresh_is_bit_equal(engine):
    def search(fitness, optimizer, first, last):
        for generation in range(first, last + 1):
            fitness.prepare(optimizer.mean, generation)
            candidates = optimizer.ask()
            optimizer.tell(candidates, fitness.evaluate(candidates).fitness)

    def make():
        return make_fitness(engine), CmaEs(dim=engine.space.dim, sigma=0.3, population=6, seed=1)

    whole = make()
    search(*whole, 1, 7)
    begun = make()
    search(*begun, 1, 4)  # one generation after a refresh
    resumed = make()
    for fresh, old in zip(resumed, begun, strict=True):
        fresh.load_state_dict(old.state_dict())
    search(*resumed, 5, 7)
    assert_array_equal(resumed[1].mean, whole[1].mean)


def test_equal_rewards_everywhere_are_an_error_that_says_so(engine):
    with pytest.raises(RewardError, match="no problem on which rewards differ"):
        make_fitness(engine, always_one).prepare(np.zeros(engine.space.dim), 1)


@pytest.mark.parametrize(
    "options", [{"samples": 1}, {"refresh": 0}, {"clip": 0.0}, {"kl_limit": -1}, {"temperature": 0}]
)
def test_options_out_of_range_are_refused(engine, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_fitness(engine, **options)
