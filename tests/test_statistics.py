"""Means with intervals."""

import math

import numpy as np
import pytest

from esalign.run.statistics import estimate, paired_difference


def test_wilson_interval_equals_the_published_value():
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662 by Wilson's method.
    result = estimate([1.0] * 81 + [0.0] * 182)
    assert (round(result.low, 4), round(result.high, 4)) == (0.2553, 0.3662)


def test_intervals_cover_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    binary = [estimate(rng.random(200) < 0.3) for _ in range(2000)]
    graded = [estimate(rng.beta(2, 5, 200)) for _ in range(2000)]
    assert np.mean([e.low <= 0.3 <= e.high for e in binary]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([e.low <= 2 / 7 <= e.high for e in graded]) == pytest.approx(0.95, abs=0.015)


def test_pairing_finds_a_gain_that_separate_intervals_hide():
    rng = np.random.default_rng(1)
    before = rng.random(400)
    after = before + 0.02 + 0.05 * rng.standard_normal(400)
    gain = paired_difference(after, before)
    assert gain.low > 0
    assert estimate(after).low < estimate(before).high


def test_abstained_problems_do_not_count():
    assert estimate([1.0, float("nan"), 0.0]).count == 2
    assert paired_difference([1.0, 1.0, 0.5], [0.0, float("nan"), 0.5]).count == 2


def test_no_problem_at_all_has_no_mean():
    assert math.isnan(estimate([]).mean)
    assert math.isnan(paired_difference([], []).mean)
