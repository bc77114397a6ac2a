"""Surrogate ESSA: its objective, its bound, its accounting and its state, with a real engine."""

from itertools import pairwise

import numpy as np
import pytest
from models import make_tiny
from numpy.testing import assert_allclose, assert_array_equal

from esalign import Steered, search
from esalign.data import MiniBatches
from esalign.errors import ConfigError, RewardError
from esalign.fitness import FitnessParts
from esalign.fitness.surrogate import MAX_TRIES, SurrogateFitness, bounded, clipped_objective, divergence, extremes
from esalign.optimizers.cma_es import CmaEs
from esalign.registry import load_backend
from esalign.rewards.pool import RewardPool
from esalign.run.checkpoint import load_state, save_state
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
    overflown = divergence(np.array([[np.nan, 0.0], [0.0, 0.0], [-1.0, 0.5], [-np.inf, 0.0]]))
    fitness = bounded(np.array([9.0, 0.2, 8.0, 7.0]), overflown, 0.05)
    assert_array_equal(np.argsort(-fitness, kind="stable"), [1, 2, 0, 3])
    assert np.isfinite(fitness).all()


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
    fitness = make_fitness(engine, kl_limit=1e9)
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


@pytest.mark.parametrize("stop", [5, 6, 7])  # of three in a row one at least is amid a set
def test_a_run_resumed_anywhere_is_bit_equal(engine, tmp_path, stop):
    def run(optimizer, fitness, last, done=0):
        for _ in search(optimizer, fitness, generations=last, done=done):
            pass

    def make():
        optimizer = Steered(CmaEs(dim=engine.space.dim, sigma=3.0, population=6, seed=1))  # too long a step, at first
        return optimizer, make_fitness(engine, judge_every=2)

    whole = make()
    run(*whole, 12)
    begun = make()
    run(*begun, stop)
    states = [part.state_dict() for part in begun]
    assert "steered" in states[0]
    save_state(dict(zip("of", states, strict=True)), tmp_path / "state")
    loaded = load_state(tmp_path / "state")
    resumed = make()
    for fresh, name in zip(resumed, "of", strict=True):
        fresh.load_state_dict(loaded[name])
    run(*resumed, 12, done=stop)
    assert_array_equal(resumed[0].mean, whole[0].mean)
    assert resumed[0].mean.any()


def test_steps_that_are_too_long_teach_nothing_but_to_be_shorter(engine):
    fitness = make_fitness(engine)
    start = np.zeros(engine.space.dim)
    assert fitness.prepare(start, 1).scale == 1
    assert not fitness.evaluate(some_candidates(engine, spread=30.0)).usable
    assert fitness.prepare(start, 2).scale < 1
    evaluation = fitness.evaluate(some_candidates(engine, spread=0.01))
    assert evaluation.usable
    assert evaluation.generated_tokens == 0  # the same completions


def test_a_mean_that_left_its_completions_far_behind_gets_new_ones(engine):
    fitness = make_fitness(engine)
    start, elsewhere = np.zeros(engine.space.dim), some_candidates(engine, spread=30.0)[0]
    fitness.prepare(start, 1)
    fitness.evaluate(some_candidates(engine, spread=0.01))
    fitness.prepare(elsewhere, 2)
    assert not fitness.evaluate(elsewhere + some_candidates(engine, spread=0.01)).usable
    assert fitness.prepare(elsewhere, 3).scale == 1  # not the steps were too long
    assert fitness.evaluate(elsewhere + some_candidates(engine, spread=0.01)).generated_tokens > 0


def test_a_search_asks_the_same_candidates_nearer_until_they_are_usable(engine):
    optimizer = Steered(CmaEs(dim=engine.space.dim, sigma=100.0, population=6, seed=1))
    generations = list(search(optimizer, make_fitness(engine), generations=8))
    usable = [one.evaluation.usable for one in generations]
    first = usable.index(True)
    assert first > 0
    for one, next_one in pairwise(generations[: first + 1]):
        assert np.corrcoef(one.candidates.ravel(), next_one.candidates.ravel())[0, 1] > 0.999999
        assert np.linalg.norm(next_one.candidates) < np.linalg.norm(one.candidates)


def test_a_mean_that_earns_less_than_the_one_trusted_is_left_for_it(engine):
    start, elsewhere = np.zeros(engine.space.dim), some_candidates(engine, spread=3.0)[0]
    prompts = [example.prompt for example in EXAMPLES]
    [row] = engine.generate(start[None], prompts, Sampling(max_tokens=8))
    of_start = {prompt: completion.text for prompt, completion in zip(prompts, row, strict=True)}

    def like_the_start(prompts, completions, **columns):
        pairs = [zip(of_start[prompt], text) for prompt, text in zip(prompts, completions, strict=True)]  # noqa: B905
        return [sum(one == other for one, other in pair) / 40 for pair in pairs]

    fitness = make_fitness(engine, like_the_start, refresh=1, judge_every=1, temperature=0.15)
    fitness.prepare(start, 1)
    assert_array_equal(fitness.prepare(elsewhere, 2).mean, start)
    evaluation = fitness.evaluate(start[None])
    assert evaluation.metrics["retreats"] == 1
    assert evaluation.metrics["kl_to_rollouts"] < 1e-9  # the completions are of the start
    assert evaluation.generated_tokens > 0


def test_a_mean_that_can_do_nothing_any_more_is_left_at_once(engine):
    fruitless = [0]  # completions that earn nothing from now on

    def reward(prompts, completions, **columns):
        earned = []
        for text in completions:
            fruitless[0] -= 1
            earned.append(0.0 if fruitless[0] >= 0 else len(set(text)) / 40)
        return earned

    start, elsewhere = np.zeros(engine.space.dim), some_candidates(engine, spread=3.0)[0]
    fitness = make_fitness(engine, reward, refresh=1, judge_every=100)
    fitness.prepare(start, 1)
    fitness.evaluate(some_candidates(engine, spread=0.01))
    fruitless[0] = MAX_TRIES * 6 * 3  # all that the mean will write
    assert_array_equal(fitness.prepare(elsewhere, 2).mean, start)
    evaluation = fitness.evaluate(start[None])
    assert evaluation.metrics["retreats"] == 1
    assert evaluation.metrics["kl_to_rollouts"] < 1e-9
    fitness.prepare(start, 3)
    fruitless[0] = 10**6
    with pytest.raises(RewardError, match="no problem on which rewards differ"):  # it has been gone back to already
        fitness.prepare(start, 4)


def test_a_limit_below_what_the_engine_can_tell_is_said(engine):
    optimizer = Steered(CmaEs(dim=engine.space.dim, sigma=0.3, population=6, seed=1))
    with pytest.raises(RewardError, match="kl_limit"):
        list(search(optimizer, make_fitness(engine, kl_limit=1e-300), generations=100))


def test_a_mean_is_judged_in_its_turn_alone(engine):
    fitness = make_fitness(engine, refresh=1, judge_every=3, prompts=6, pairs=1, kl_limit=1e9)
    generated = []
    for generation in range(1, 7):
        fitness.prepare(np.full(engine.space.dim, generation / 1000), generation)  # not the trusted one again
        generated.append(fitness.evaluate(some_candidates(engine)).prompt_tokens)
    prompt_tokens = min(generated)
    assert [tokens // prompt_tokens for tokens in generated] == [1, 1, 2, 1, 1, 2]


def test_equal_rewards_everywhere_are_an_error_that_says_so(engine):
    with pytest.raises(RewardError, match="no problem on which rewards differ"):
        make_fitness(engine, always_one).prepare(np.zeros(engine.space.dim), 1)


@pytest.mark.parametrize(
    "options", [{"samples": 1}, {"refresh": 0}, {"judge_every": 0}, {"clip": 0.0}, {"kl_limit": -1}, {"temperature": 0}]
)
def test_options_out_of_range_are_refused(engine, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_fitness(engine, **options)
