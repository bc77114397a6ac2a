"""Completions that are drawn at a few places of the way, weighed for all of them."""

from dataclasses import replace

import numpy as np
import pytest

from esalign.fitness.completions import mean_of_samples
from esalign.run.evaluate import HeldOut, HeldOutResult
from esalign.run.statistics import paired_difference
from esalign.run.step_back import FIRST, MIDDLE, MOST, Drawn, contributions, furthest, step_back
from esalign.types import Completion, Example, Sampling

PROBLEMS, WORDS = 400, 6


class Policy:
    """A softmax over a few words for each problem, whose logits are linear in the place; words have rewards.

    Args:
        distance: how far the end is from the start, in nats.
        own: whether each place writes words of its own.
    """

    def __init__(self, distance=1.0, seed=0, own=False):
        rng = np.random.default_rng(seed)
        self.start, self.way = rng.normal(size=(2, PROBLEMS, WORDS))
        self.way *= distance
        self.rewards = (rng.random((PROBLEMS, WORDS)) < 0.4).astype(float)
        self.own, self.drawn = own, []

    def log_p(self, share):
        logits = self.start + share * self.way
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def judge(self, share, problems, sampling):
        places = [int(one.prompt) for one in problems.examples]
        assert (sampling.temperature, sampling.top_p, sampling.top_k) in [(0.0, 0.9, 5), (1.0, 1.0, 0)]
        if sampling.temperature == 0:
            return HeldOutResult(self.rewards[places, self.log_p(share)[places].argmax(axis=1)], generated_tokens=1)
        self.drawn += [(share, len(places))]
        log_p = self.log_p(share)[places]
        streams = np.random.default_rng(sampling.seed).random((100 * PROBLEMS, 1))
        uniforms = streams[sampling.offset : sampling.offset + len(places)]
        words = np.minimum((np.exp(log_p).cumsum(axis=1) < uniforms).sum(axis=1), WORDS - 1)
        own = round(1000 * share) if self.own else 0
        values = np.zeros(len(places)) if self.own else log_p[np.arange(len(places)), words]
        completions = [Completion("", (int(w), own), "stop", float(p)) for w, p in zip(words, values, strict=True)]
        return HeldOutResult(self.rewards[places, words], generated_tokens=1, completions=completions)

    def log_probs(self, share, prompts, completions):
        if self.own:
            return np.where([one.token_ids[1] == round(1000 * share) for one in completions], 0.0, -np.inf)
        log_p = self.log_p(share)
        return np.array([log_p[int(p), c.token_ids[0]] for p, c in zip(prompts, completions, strict=True)])

    def gain(self, share):
        """What it truly earns more there than at the start, shape (problems,)."""
        earned = [(np.exp(self.log_p(at)) * self.rewards).sum(axis=1) for at in (share, 0.0)]
        return earned[0] - earned[1]

    def drawing(self, seed=0):
        return Drawn(self.judge, self.log_probs, self.problems, Sampling(top_p=0.9, top_k=5, seed=seed))

    @property
    def problems(self):
        return HeldOut([Example(str(j)) for j in range(PROBLEMS)], pool=None)


def measured(policy, places, count, seeds=60, first_seed=0):
    """Estimates of the gain at each place but the first, shape (seeds, places - 1)."""
    found = []
    for seed in range(first_seed, first_seed + seeds):
        drawn = policy.drawing(seed)
        drawn.draw(places, count)
        found.append([estimate.mean for estimate in drawn.gains().values()])
    return np.array(found)


def differences(policy, count, seeds=60):
    """What the means of rewards, without weights, differ between start and end."""
    found = []
    for seed in range(1000, 1000 + seeds):
        drawn = policy.drawing(seed)
        drawn.draw((0.0, 1.0), count)
        start, end = (batch.rewards.mean() for batch in drawn._batches)
        found.append(end - start)
    return np.array(found)


KINDS = {
    "right or wrong": lambda rewards, rng: rewards,
    "far from zero": lambda rewards, rng: rewards + 50,
    "on another scale for each problem": lambda rewards, rng: rewards + 5 * rng.standard_normal((PROBLEMS, 1)),
    "mostly settled": lambda rewards, rng: np.where(
        rng.random((PROBLEMS, 1)) < 0.85, rng.random((PROBLEMS, 1)) < 0.5, rewards
    ),
}


@pytest.mark.parametrize("places", [(0.0, 1.0), (0.0, MIDDLE, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_gains_are_unbiased_at_every_place_whatever_the_rewards(places, kind):
    policy = Policy()
    policy.rewards = KINDS[kind](policy.rewards, np.random.default_rng(7))
    errors = measured(policy, places, FIRST) - [policy.gain(place).mean() for place in places[1:]]
    assert (np.abs(errors.mean(axis=0)) < 3 * errors.std(axis=0) / len(errors) ** 0.5).all()
    assert (errors.std(axis=0) < 0.02).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_tell_a_gain_with_a_fraction_of_the_noise(kind):
    """Half of a nat from the start: two draws with weights are worth more than eight without."""
    policy = Policy(0.5)
    policy.rewards = KINDS[kind](policy.rewards, np.random.default_rng(7))
    assert measured(policy, (0.0, 1.0), FIRST).std() < differences(policy, MOST).std()


def test_draws_in_two_parts_are_draws():
    policy = Policy(own=True)
    drawn = policy.drawing()
    drawn.draw((0.0, 1.0), FIRST)
    drawn.draw((MIDDLE,), FIRST)
    drawn.draw((0.0, MIDDLE, 1.0), 3)
    assert policy.drawn == [(s, PROBLEMS * c) for s, c in [(0, 2), (1, 2), (0.5, 2), (0, 3), (0.5, 3), (1, 3)]]
    for place in (MIDDLE, 1.0):  # where no place writes what another does, a gain is a difference of means
        means = [
            np.concatenate([b.rewards for b in drawn._batches if b.share == at], axis=1).mean(axis=1)
            for at in (place, 0.0)
        ]
        assert drawn.gains()[place].mean == pytest.approx((means[0] - means[1]).mean())
        assert drawn.gains()[place].low == pytest.approx(paired_difference(*means).low)


def test_abstentions_are_left_out_place_by_place():
    policy = Policy(own=True)
    drawn = policy.drawing()
    drawn.draw((0.0, 1.0), 4)
    start, end = drawn._batches
    start.rewards[0] = end.rewards[1] = np.nan  # all of a place
    end.rewards[2, :3] = np.nan
    parts = mean_of_samples(contributions(*drawn._tables())[1]).mean(axis=0)
    assert np.isnan(parts).nonzero()[0].tolist() == [0, 1]
    assert parts[3:] == pytest.approx(end.rewards[3:].mean(axis=1) - start.rewards[3:].mean(axis=1))
    assert drawn.gains()[1.0].count == PROBLEMS - 2
    assert drawn.needed() == MOST
    end.rewards[:] = np.nan
    assert drawn.gains()[1.0].count == 0
    assert drawn.needed() == MOST


def test_engines_that_do_not_tell_how_likely_completions_are_read_them():
    policy = Policy()
    telling = policy.drawing()
    telling.draw((0.0, 1.0), FIRST)
    judge = policy.judge

    def silent(share, problems, sampling):
        result = judge(share, problems, sampling)
        return replace(result, completions=[replace(one, logprob=None) for one in result.completions])

    policy.judge = silent
    reading = policy.drawing()
    reading.draw((0.0, 1.0), FIRST)
    assert reading.gains()[1.0].mean == pytest.approx(telling.gains()[1.0].mean)
    assert reading.gains()[1.0].low == pytest.approx(telling.gains()[1.0].low)


@pytest.mark.parametrize(("policy", "count"), [(Policy(0.3), FIRST), (Policy(own=True), MOST)])
def test_it_draws_as_many_as_the_weights_leave_to_draw(policy, count):
    policy.rewards[:] = np.random.default_rng(1).random((PROBLEMS, WORDS))
    policy.rewards -= (policy.gain(1.0) > 0)[:, None] * policy.way * 0.1  # what is gained is no longer plain
    step_back(policy.judge, policy.log_probs, policy.problems, np.zeros(PROBLEMS), Sampling(top_p=0.9, top_k=5))
    drawn = {share: sum(n for at, n in policy.drawn if at == share) // PROBLEMS for share in (0.0, MIDDLE, 1.0)}
    assert drawn == dict.fromkeys(drawn, count)


def test_where_nothing_is_in_question_the_ends_decide():
    policy = Policy(0.5)
    policy.rewards[:] = policy.way  # what becomes likelier is worth more
    share, tried = step_back(
        policy.judge, policy.log_probs, policy.problems, np.zeros(PROBLEMS), Sampling(top_p=0.9, top_k=5)
    )
    assert (share, list(tried)) == (1.0, [1.0])
    assert policy.drawn == [(0.0, FIRST * PROBLEMS), (1.0, FIRST * PROBLEMS)]
    assert tried[1.0].low < policy.gain(1.0).mean() < tried[1.0].high


def test_noise_of_the_usual_size_moves_the_share_by_less_than_a_tenth():
    """Of 400 Countdown problems with two draws each, gains have standard errors of about 0.007 and 0.010."""
    rng, at = np.random.default_rng(0), np.array([0.0, MIDDLE, 1.0])
    errors = []
    for _ in range(300):
        measured = 0.08 * at - 0.1 * at**2 + np.array([0.0, 0.007, 0.010]) * rng.standard_normal(len(at))
        errors.append(furthest(dict(zip(at, measured, strict=True))) - 0.8)
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).mean() < 0.1
