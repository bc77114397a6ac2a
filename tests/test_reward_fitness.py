"""The fitness of ESSA: how many problems a generation has, and what of them is sampled."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from esalign.data import MiniBatches
from esalign.errors import ConfigError, RewardError
from esalign.fitness import FitnessParts
from esalign.fitness.completions import Completed
from esalign.fitness.reliability import LEAST, MOST, ProblemCount, reliability, variances
from esalign.fitness.reward import RewardFitness
from esalign.rewards.pool import RewardPool
from esalign.testing import FakeBackend
from esalign.types import Completion, Example, Sampling

EXAMPLES = [Example(prompt=f"{a} + {b} =", columns={}) for a in range(40) for b in range(20)]


def variety(prompts, completions, **columns):
    return [len(set(text)) / 40 for text in completions]


def simulated(rng, *, signal, noise, candidates=24, problems=24):
    """Rewards of candidates that differ by a standard deviation, problems that differ, and noise."""
    rows, columns = rng.normal(0, signal, (candidates, 1)), rng.normal(0, 0.3, (1, problems))
    return 0.5 + rows + columns + rng.normal(0, noise, (candidates, problems))


def make_fitness(sampling=None, seed=0, **options):
    backend = FakeBackend("any", SimpleNamespace(dim=4))
    pool = RewardPool([(variety, 1.0)], workers=0)
    batches = MiniBatches(EXAMPLES, seed=seed)
    return RewardFitness(FitnessParts(backend, batches, pool, sampling or Sampling(max_tokens=8)), **options)


def test_variances_are_those_that_made_the_rewards():
    rng = np.random.default_rng(0)
    found = np.mean([variances(simulated(rng, signal=0.05, noise=0.4)) for _ in range(400)], axis=0)
    np.testing.assert_allclose(found, [0.05**2, 0.4**2], rtol=0.1)


def test_reliability_is_the_share_of_signal():
    rng = np.random.default_rng(0)
    found = np.mean([reliability(simulated(rng, signal=0.08, noise=0.4)) for _ in range(400)])
    assert found == pytest.approx(0.08**2 / (0.08**2 + 0.4**2 / 24), abs=0.05)
    assert reliability(np.tile(rng.random((8, 1)), 24)) == pytest.approx(1.0)  # candidates differ alike on all problems
    assert reliability(np.tile(rng.random(24), (8, 1))) is None  # problems alone differ
    assert reliability(np.full((24, 5), np.nan)) is None
    for _ in range(200):  # fractions, whose rounding is no signal
        assert reliability(np.tile(rng.choice([0.1, 0.3, 0.7], 24), (8, 1))) is None
    rewards = simulated(rng, signal=0.08, noise=0.4)
    holes = np.insert(rewards, [3] * 12, np.nan, axis=1)  # problems on which all abstained
    assert reliability(holes) == pytest.approx(reliability(rewards))


@pytest.mark.parametrize("missing", [0.05, 0.2])
def test_abstentions_leave_the_variances_what_they_are(missing):
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        rewards = simulated(rng, signal=0.05, noise=0.4)
        found.append(variances(np.where(rng.random(rewards.shape) < missing, np.nan, rewards)))
    np.testing.assert_allclose(np.mean(found, axis=0), [0.05**2, 0.4**2], rtol=0.15)


def test_a_candidate_without_rewards_and_a_table_without_any_are_left_out():
    rewards = simulated(np.random.default_rng(0), signal=0.1, noise=0.3)
    np.testing.assert_allclose(variances(np.vstack([rewards, np.full((1, 24), np.nan)])), variances(rewards))
    assert np.isnan(variances(np.full((24, 5), np.nan))).all()


@pytest.mark.parametrize(("signal", "noise", "expected"), [(0.2, 0.4, LEAST), (0.04, 0.4, 43), (0.0, 0.4, MOST)])
def test_as_many_problems_as_make_three_tenths_of_the_ranking_signal(signal, noise, expected):
    rng, count, seen = np.random.default_rng(0), ProblemCount(), []
    for _ in range(200):
        count.note(simulated(rng, signal=signal, noise=noise, problems=count.count))
        seen.append(count.count)
    assert np.median(seen[20:]) == pytest.approx(expected, rel=0.25)
    assert all(LEAST <= number <= MOST for number in seen)


def test_fewer_problems_again_when_candidates_part():
    rng, count = np.random.default_rng(0), ProblemCount(MOST)
    for _ in range(20):
        count.note(simulated(rng, signal=0.2, noise=0.4, problems=count.count))
    assert count.count == LEAST


def test_a_number_that_is_given_is_kept():
    fitness = make_fitness(prompts=5)
    for generation in range(1, 4):
        fitness.prepare(np.zeros(4), generation)
        assert fitness.evaluate(np.zeros((4, 4))).metrics["prompts"] == 5


def test_samples_of_a_problem_are_one_measurement():
    fitness = make_fitness(Sampling(max_tokens=3, temperature=1.0), samples=2)
    fitness.prepare(np.zeros(4), 1)
    rewards = fitness._complete(np.zeros((3, 4))).rewards
    assert fitness.evaluate(np.zeros((3, 4))).metrics["prompts"] == LEAST
    assert fitness._count.noise == variances((rewards[:, ::2] + rewards[:, 1::2]) / 2)[1]


def test_half_of_the_problems_are_sampled_where_decoding_is_greedy():
    candidates, [half, none, warm] = np.ones((2, 4)), [[], [], []]
    settings = [(half, {"sampled": 0.5}, 0.0), (none, {"sampled": 0.0}, 0.0), (warm, {"sampled": 0.5}, 0.7)]
    for rows, options, temperature in settings:
        fitness = make_fitness(Sampling(max_tokens=8, temperature=temperature), prompts=40, **options)
        fitness.prepare(np.zeros(4), 1)
        rows += [fitness._complete(candidates).rows[0][j].text for j in range(40)]
    assert half[:20] == none[:20]
    assert sum(mixed != greedy for mixed, greedy in zip(half[20:], none[20:], strict=True)) > 5
    assert warm != none


def test_scoring_that_fails_for_all_sampled_problems_is_counted_and_goes_on():
    fitness = make_fitness(prompts=6, sampled=0.5, confidence=0.0)
    fitness.prepare(np.zeros(4), 1)
    failing = {example.prompt for example in fitness._examples[3:]}

    def shaky(prompts, completions, **columns):
        return [1 / (prompt not in failing) for prompt in prompts]

    fitness._pool = RewardPool([(shaky, 1.0)], workers=0)
    told = fitness.evaluate(np.ones((2, 4)))
    assert told.fitness.tolist() == [0.5, 0.5]
    assert told.metrics["errors/shaky/error"] == 6
    failing |= {example.prompt for example in fitness._examples}
    with pytest.raises(RewardError, match="none of 12 completions could be scored"):
        fitness.evaluate(np.ones((2, 4)))


def test_a_greedy_completion_counts_more_the_likelier_it_is():
    candidates = np.random.default_rng(0).standard_normal((3, 4))
    plain, fitness = (make_fitness(prompts=8, sampled=0.25, confidence=weight) for weight in (0.0, 2.0))
    for one in (plain, fitness):
        one.prepare(np.zeros(4), 1)
    rewards = plain._complete(candidates).rewards
    assert_array_equal(plain.evaluate(candidates).fitness, rewards.mean(axis=1))
    prompts, backend = [example.prompt for example in fitness._examples], fitness._backend
    greedy = backend.generate(candidates, prompts, Sampling(max_tokens=8))
    for i, row in enumerate(greedy):
        sequences = [(backend.encode(prompt), one.token_ids) for prompt, one in zip(prompts, row, strict=True)]
        likely = np.exp([scores.sum() for scores in backend.score(candidates[i : i + 1], sequences)[0]])
        likely[6:] = 0.0  # these are drawn
        assert likely[:6].min() > 0.0
        values = rewards[i] + 2.0 * likely * (rewards[i] - rewards.min())
        assert fitness.evaluate(candidates).fitness[i] == pytest.approx(values.mean())
    assert fitness.evaluate(candidates).metrics["reward"] == pytest.approx(rewards.mean())


def test_a_generation_that_is_all_drawn_asks_for_no_probabilities():
    for sampling, sampled in ((Sampling(max_tokens=8, temperature=0.7), 0.25), (Sampling(max_tokens=8), 1.0)):
        one, other = (make_fitness(sampling, sampled=sampled, confidence=weight) for weight in (0.0, 4.0))
        for fitness in (one, other):
            fitness.prepare(np.zeros(4), 1)
        assert not other._sampling.logprob
        assert_array_equal(one.evaluate(np.ones((2, 4))).fitness, other.evaluate(np.ones((2, 4))).fitness)


def scripted(rewards, logprobs, **options):
    """What the fitness makes of rewards and log-probabilities, both of shape (candidates, problems)."""
    fitness = make_fitness(prompts=len(rewards[0]), **options)
    fitness.prepare(np.zeros(4), 1)
    rows = [[Completion("", (1,), "stop", p) for p in row] for row in logprobs]
    fitness._complete = lambda candidates: Completed(rows, np.array(rewards, dtype=float), {}, {})
    return fitness.evaluate(np.zeros((len(rows), 4))).fitness


def test_where_all_rewards_are_equal_probabilities_tell_no_candidates_apart():
    logprobs = np.log([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
    assert scripted(np.ones((2, 4)), logprobs).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shift", [-1.0, 0.0, 5.0])
def test_what_is_added_to_all_rewards_changes_nothing(shift):
    logprobs = np.log([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
    rewards = np.array([[0.0, 1.0, 0.5, 0.5], [0.5, 0.0, 0.5, 0.5]])
    np.testing.assert_allclose(scripted(rewards + shift, logprobs) - shift, scripted(rewards, logprobs))


def test_of_equally_sure_candidates_the_better_one_wins_whatever_the_rewards_sign():
    logprobs = np.full((2, 4), np.log(0.9))
    better, worse = scripted([[-0.2] * 4, [-0.5] * 4], logprobs)
    assert better > worse


def test_who_abstains_on_drawn_problems_is_no_better_for_it():
    logprobs = np.full((2, 4), np.log(0.9))  # the last problem is drawn
    one, other = scripted([[1.0, 1.0, 0.0, np.nan], [1.0, 1.0, 0.0, 2 / 3]], logprobs, sampled=0.25)
    assert one == pytest.approx(other)


def test_a_candidate_whose_logits_overflow_is_sure_of_nothing():
    found = scripted([[1.0, 0.0, 1.0, 0.0]] * 2, [[np.nan] * 4, [0.0] * 4], sampled=0.0, confidence=2.0)
    assert found.tolist() == [0.5, 1.5]


def test_the_defaults_are_a_quarter_sampled_and_a_weight_of_four():
    found = scripted([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], np.zeros((2, 4)))
    assert found.tolist() == [0.25 + 4 * 0.25, 0.25]


def test_an_engine_that_gives_no_probabilities_is_refused():
    fitness = make_fitness(prompts=4)
    generate = fitness._backend.generate

    def mute(candidates, prompts, sampling, on_completion=None):
        return generate(candidates, prompts, replace(sampling, logprob=False), on_completion)

    fitness._backend.generate = mute
    fitness.prepare(np.zeros(4), 1)
    with pytest.raises(ConfigError, match=r"set fitness\.options\.confidence to 0"):
        fitness.evaluate(np.random.default_rng(0).standard_normal((3, 4)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampled": 1.5}, "fitness.options.sampled is 1.5, expected a share"),
        ({"confidence": -1.0}, "fitness.options.confidence is -1.0, expected a weight, at least 0"),
        ({"confidence": float("inf")}, "fitness.options.confidence is inf"),
    ],
)
def test_options_outside_their_range_are_refused(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        make_fitness(**options)


def test_goes_on_as_it_would_have_from_a_state():
    rng = np.random.default_rng(1)
    table = 0.01 * rng.standard_normal((6, 3, 4))  # candidates that hardly differ
    whole, first, second = (make_fitness(Sampling(max_tokens=3)) for _ in range(3))

    def generations(fitness, numbers):
        for number in numbers:
            fitness.prepare(np.zeros(4), number + 1)
            told = fitness.evaluate(table[number])
            yield told.fitness, told.metrics["prompts"]

    wanted = list(generations(whole, range(6)))
    found = list(generations(first, range(3)))
    second.load_state_dict(first.state_dict())
    found += generations(second, range(3, 6))
    for (one, prompts), (other, others) in zip(wanted, found, strict=True):
        assert_array_equal(one, other)
        assert prompts == others
    assert len({prompts for _, prompts in wanted}) > 1
