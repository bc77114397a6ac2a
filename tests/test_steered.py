"""A steered optimiser keeps the contract, goes where it is sent, and resumes there; and what a trust region decides."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from esalign import Evaluation, Steered, search
from esalign.errors import OptimizerError
from esalign.fitness.trust import TrustRegion
from esalign.optimizers.cma_es import CmaEs
from esalign.registry import make_optimizer
from esalign.testing import OPTIMIZER_CLAIMS
from esalign.types import Steering

NAMES = ("cma-es", "openai-es", "random-search", "nevergrad:DiagonalCMA")


def make(name, seed=3):
    return Steered(make_optimizer(name, dim=12, sigma=0.3, population=8, seed=seed))


def advance(optimizer, generations):
    for _ in range(generations):
        candidates = optimizer.ask()
        optimizer.tell(candidates, -((candidates - 1) ** 2).sum(axis=1))


def sent(**settings):
    """Return a steered optimiser whose start is zero as of any other, by way of another frame."""
    optimizer = Steered(CmaEs(**{**settings, "sigma": 2 * settings["sigma"]}))
    optimizer.steer(Steering(mean=np.zeros(settings["dim"]), scale=0.5))
    return optimizer


@pytest.mark.parametrize("claim", OPTIMIZER_CLAIMS, ids=lambda claim: claim.__name__)
def test_it_keeps_the_contract(claim):
    claim(lambda **settings: Steered(CmaEs(**settings)))


@pytest.mark.parametrize("claim", OPTIMIZER_CLAIMS, ids=lambda claim: claim.__name__)
def test_it_keeps_the_contract_where_it_was_sent(claim):
    if claim.__name__ != "refuses_a_foreign_state":  # without `steered`, a state is the other's own, and no foreign one
        claim(sent)


@pytest.mark.parametrize("name", NAMES)
def test_unsteered_it_is_the_optimizer_to_the_bit(name):
    steered, plain = make(name), make_optimizer(name, dim=12, sigma=0.3, population=8, seed=3)
    advance(steered, 5)
    advance(plain, 5)
    assert_array_equal(steered.ask(), plain.ask())
    assert "steered" not in steered.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_where_it_is_sent_with_steps_of_that_length(name):
    optimizer = make(name)
    first = optimizer.sigma
    advance(optimizer, 5)
    before, mean, sigma = optimizer.ask(), optimizer.mean, optimizer.sigma
    there = np.full(12, -2.0)
    optimizer.steer(Steering(mean=there, scale=0.25))
    assert_allclose(optimizer.mean, there, atol=1e-12)
    assert_allclose(optimizer.sigma, first / 4)  # of the first step size, whatever became of it
    assert_allclose(np.diff(optimizer.ask(), axis=0), np.diff(before, axis=0) * first / 4 / sigma, atol=1e-12)
    if name != "random-search":  # whose candidates lie around its start
        assert_allclose(optimizer.ask() - there, (before - mean) * first / 4 / sigma, atol=1e-12)
        assert np.abs(optimizer.ask().mean(axis=0) - there).max() < 0.3
    with pytest.raises(OptimizerError, match="not the one that was asked"):
        optimizer.tell(before, np.arange(8.0))


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_a_steering_is_resumed_to_the_bit(name):
    whole, resumed = make(name), make(name, seed=4)
    advance(whole, 3)
    whole.steer(Steering(mean=np.full(12, 0.5), scale=0.5))
    advance(whole, 2)
    state = whole.state_dict()
    resumed.load_state_dict(state)
    advance(whole, 3)
    advance(resumed, 3)
    assert_array_equal(resumed.mean, whole.mean)
    assert_array_equal(resumed.ask(), whole.ask())


def test_it_learns_where_it_was_sent():
    optimizer = make("cma-es")
    optimizer.steer(Steering(mean=np.full(12, 3.0), scale=0.5))
    advance(optimizer, 60)
    assert np.linalg.norm(optimizer.mean - 1) < np.linalg.norm(np.full(12, 2.0)) / 2


def test_what_the_optimizer_makes_of_its_step_size_is_taken_out_as_far_as_numbers_allow():
    optimizer = Steered(CmaEs(dim=8, sigma=0.3, population=8, seed=0, step_damping=1.0))
    sizes = []
    for _ in range(1500):  # at the optimum its own step size shrinks for ever
        optimizer.steer(Steering(mean=optimizer.mean, scale=1.0))
        candidates = optimizer.ask()
        optimizer.tell(candidates, -((candidates - 1) ** 2).sum(axis=1))
        sizes.append(optimizer.sigma)
    assert np.median(sizes[:50]) > 0.1
    assert optimizer.state_dict()["steered"]["scale"] <= 1e6
    assert_allclose(optimizer.mean, 1, atol=1e-3)  # then it converges, as by itself


def test_a_copy_shares_nothing():
    optimizer = make("cma-es")
    other = copy.copy(optimizer)
    advance(optimizer, 3)
    assert not other.mean.any()


class Steers:
    """A fitness that sends every generation to the same place."""

    def prepare(self, mean, generation):
        return Steering(mean=np.ones(12), scale=0.5)

    def evaluate(self, candidates):
        return Evaluation(fitness=np.zeros(len(candidates)))


def test_a_search_is_steered_or_says_that_it_cannot_be():
    optimizer = make("cma-es")
    [generation] = search(optimizer, Steers(), generations=1)
    assert np.abs(generation.candidates - 1).max() < 5 * 0.15
    with pytest.raises(OptimizerError, match=r"esalign\.Steered"):
        list(search(CmaEs(dim=12, sigma=0.3, population=8, seed=0), Steers(), generations=1))


def test_steps_follow_the_divergence_and_never_outgrow_the_optimizers_own():
    trust = TrustRegion(limit=0.05)
    scale = lambda: trust.steering(np.zeros(2)).scale  # noqa: E731
    trust.note(np.full(4, 0.001))
    assert scale() == 1
    trust.note(np.full(4, 0.1))  # four times as far as wanted, so half as long
    assert_allclose(scale(), 0.5)
    trust.note(np.full(4, 0.0))
    assert_allclose(scale(), 0.625)
    trust.note(np.full(4, 1e9))
    assert_allclose(scale(), 0.0625)
    trust.note(np.array([np.inf, 0.025, 0.025, 0.025]))  # one candidate's logits overflow
    assert_allclose(scale(), 0.0625)


def test_a_mean_that_earns_less_is_retreated_from_and_one_that_earns_no_less_is_trusted():
    trust = TrustRegion(limit=0.05)
    first, second = np.zeros(2), np.ones(2)
    trust.trusted = first
    assert not trust.retreats_from(second, np.zeros(8))  # both earn nothing, say
    assert_array_equal(trust.trusted, first)
    assert not trust.retreats_from(second, np.array([1.0, -1.0, 1.0, -1.0, -1.0, 0.0, 0.0, np.nan]))  # within an error
    assert_array_equal(trust.trusted, first)
    assert trust.retreats_from(second, np.array([0.0, -1.0, -1.0, -1.0]))
    assert_array_equal(trust.trusted, first)
    assert not trust.retreats_from(second, np.full(8, np.nan))  # nothing known, nothing changed
    assert_array_equal(trust.trusted, first)
    trust.note(np.full(4, 0.05))  # the region is half as large now, so wanted is a quarter of this
    assert_allclose(trust.steering(first).scale, 0.5)
    assert not trust.retreats_from(second, np.array([1.0, 0.0, 1.0]))
    assert_array_equal(trust.trusted, second)
    assert trust.retreats == 1
