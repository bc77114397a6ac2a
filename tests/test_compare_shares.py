"""The shares of GRPO's seconds that the comparison prints."""

import numpy as np
import pytest
from comparing import comparison  # noqa: F401 - a fixture of every test


def straight(seconds, gain, back=0.0):
    """A curve that rises evenly to a gain."""
    return np.array([0.0, seconds / 2, seconds]), np.array([back, back]), np.array([0.0, gain / 2, gain])


def test_shares_are_of_grpos_own_gain_and_count_what_going_back_takes():
    from shares import ratio

    grpo = {0: straight(40, 0.4), 1: straight(60, 0.2)}
    assert ratio([0, 1], {0: straight(10, 0.4), 1: straight(10, 0.2)}, grpo, 0.5) == pytest.approx(5 / 25)
    assert ratio([0, 1], {0: straight(10, 0.4, 2), 1: straight(10, 0.2, 4)}, grpo, 0.5) == pytest.approx((5 + 3) / 25)
    assert ratio([1, 1], {1: straight(10, 0.2)}, grpo, 0.9) == pytest.approx(9 / 54)
    assert ratio([0, 0], {0: straight(10, 0.3)}, grpo, 0.9) == np.inf


def test_a_line_has_the_seeds_of_both_and_an_interval_over_them():
    from shares import line

    mine = {seed: straight(10 + seed, 0.4) for seed in range(4)}
    cells = line("a search", mine, {seed: straight(50, 0.4) for seed in (0, 1, 2, 7)}).strip("| ").split(" | ")
    assert cells[:2] == ["a search", "3"]
    assert cells[2] == "0.22 [0.20, 0.24]"
    never = line("a search", mine, {0: straight(50, 0.6)}).strip("| ").split(" | ")
    assert never[2:] == ["0.30 [0.30, 0.30]", "-", "-"]
