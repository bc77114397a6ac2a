"""A dry run says what the first step does to completions, and proposes another where it is no good."""

import numpy as np
import pytest

from esalign.report.words import concerns_of_step
from esalign.run.first_step import FirstStep, is_broken, try_first_step
from esalign.testing.fake import FakeBackend
from esalign.types import Completion, Sampling

DIM = 400  # so large that a vector's length is about sigma * 20
PROMPTS = [f"problem {number}" for number in range(8)]


class Numbers:
    """Stands for a space: the fake engine wants its length alone."""

    dim = DIM


def write(candidate, prompt):
    """Answer as ever near the start, otherwise from 1 on, and too long to be useful from 6 on."""
    far = float(np.linalg.norm(candidate)) / np.sqrt(DIM)
    return "as ever" if far < 1 else f"it is {prompt[-1]}" if far < 6 else "go on and on " * 9


def first_step(sigma):
    backend = FakeBackend("any", Numbers(), completions=write, confidence=60.0)
    return try_first_step(backend, DIM, PROMPTS, Sampling(max_tokens=40), sigma=sigma, seed=0)


@pytest.mark.parametrize(
    ("sigma", "changed", "broken", "proposed"),
    [(2.0, 1.0, 0.0, None), (0.3, 0.0, 0.0, 1.2), (16.0, 1.0, 1.0, 4.0), (1e-6, 0.0, 0.0, None)],
)
def test_effect_is_measured_and_a_better_step_proposed(sigma, changed, broken, proposed):
    step, better = first_step(sigma)
    assert (step.sigma, step.changed, step.broken, step.broken_at_start) == (sigma, changed, broken, 0.0)
    assert better == pytest.approx(proposed)


@pytest.mark.parametrize(
    ("step", "proposed", "told"),
    [
        (FirstStep(0.5, 0.6, 0.1, 0.0), None, []),
        (FirstStep(0.01, 0.02, 0.0, 0.0), 0.08, ["hardly differ", "try optimizer.sigma=0.08"]),
        (FirstStep(9.0, 1.0, 0.7, 0.1), 2.25, ["break what the start can do", "try optimizer.sigma=2.2"]),
        (FirstStep(9.0, 1.0, 0.7, 0.6), None, []),
    ],
)
def test_user_is_told_in_one_line(step, proposed, told):
    lines = concerns_of_step(step, proposed)
    assert len(lines) == bool(told)
    for part in told:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("completion", "broken"),
    [
        (Completion("fine", (1, 2, 3), "stop"), False),
        (Completion(" \n", (1,), "stop"), True),
        (Completion("cut", (1, 2, 3), "length"), True),
        (Completion("again and again", (1, 2) * 20, "stop"), True),
        (Completion("long but varied", tuple(range(40)), "stop"), False),
    ],
)
def test_broken_completions_are_empty_cut_or_repetitive(completion, broken):
    assert is_broken(completion) is broken
