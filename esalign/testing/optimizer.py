"""The contract of `esalign.protocols.Optimizer`, one claim a function.

A plug-in's whole test is::

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_search(claim):
        claim(MySearch)

Each claim takes what makes the optimiser: a class, or a function, with the keywords dim, sigma, population and seed.
"""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from esalign.errors import OptimizerError
from esalign.optimizers.random_search import RandomSearch
from esalign.protocols import Optimizer
from esalign.testing.refusal import expect_refusal
from esalign.types import Array, State

Make = Callable[..., Optimizer]

DIM, SIGMA, POPULATION = 12, 0.3, 8
SHAPE = (POPULATION, DIM)
GENERATIONS, SEEDS = 100, 5


def make_small(make: Make, **changes: Any) -> Optimizer:
    """Return a small optimiser."""
    return make(**{"dim": DIM, "sigma": SIGMA, "population": POPULATION, "seed": 3, **changes})


def _noisy_sphere(candidates: Array, rng: np.random.Generator) -> Array:
    """Return a fitness that is best at 1 in every coordinate, with noise of a quarter of its spread at the start."""
    distance = ((candidates - 1.0) ** 2).sum(axis=1)
    spread = 2 * SIGMA * np.sqrt(DIM)
    return np.asarray(-distance + spread / 4 * rng.standard_normal(len(candidates)))


def advance(optimizer: Optimizer, generations: int, rng: np.random.Generator) -> None:
    """Run generations on the noisy sphere."""
    for _ in range(generations):
        candidates = optimizer.ask()
        optimizer.tell(candidates, _noisy_sphere(candidates, rng))


def same(one: Any, other: Any) -> bool:
    """Say whether two states are equal, to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def starts_at_zero(make: Make) -> None:
    """The recommendation is the start until something was learnt, and sigma is the one that was asked for."""
    optimizer = make_small(make)
    optimizer.ask()
    assert np.array_equal(optimizer.mean, np.zeros(DIM))
    assert np.isclose(optimizer.sigma, SIGMA, rtol=1e-3)


def asks_the_same_until_told(make: Make) -> None:
    """Asking is harmless, and gives finite float64 candidates of the right shape that differ."""
    optimizer = make_small(make)
    first, again = optimizer.ask(), optimizer.ask()
    assert first.shape == SHAPE
    assert first.dtype == np.float64
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
    optimizer.tell(first, _noisy_sphere(first, np.random.default_rng(0)))
    assert not np.array_equal(optimizer.ask(), first)


def repeats_with_its_seed(make: Make) -> None:
    """The same seed gives the same run, another seed another one."""
    runs = [make_small(make, seed=seed) for seed in (5, 5, 6)]
    for optimizer in runs:
        advance(optimizer, 4, np.random.default_rng(0))
    assert np.array_equal(runs[0].ask(), runs[1].ask())
    assert not np.array_equal(runs[0].ask(), runs[2].ask())


def hands_out_no_live_state(make: Make) -> None:
    """Scribbling over what it returned, or over what it was given, changes nothing."""
    touched, clean = make_small(make), make_small(make)
    for optimizer in (touched, clean):
        advance(optimizer, 3, np.random.default_rng(0))
        candidates = optimizer.ask()
        fitness = _noisy_sphere(candidates, np.random.default_rng(1))
        optimizer.tell(candidates, fitness)
        if optimizer is touched:
            for array in (candidates, fitness, optimizer.ask(), optimizer.mean, *_arrays(optimizer.state_dict())):
                array[...] = 7
    advance(touched, 3, np.random.default_rng(2))
    advance(clean, 3, np.random.default_rng(2))
    assert same(touched.state_dict(), clean.state_dict())


def copies_ask_the_same(make: Make) -> None:
    """A deep copy goes on as the original does, told or asked, and neither notices what the other is told."""
    for waits in (False, True):
        original = make_small(make)
        advance(original, 2, np.random.default_rng(0))
        if waits:
            original.ask()
        other = copy.deepcopy(original)
        advance(original, 3, np.random.default_rng(1))
        advance(other, 3, np.random.default_rng(1))
        assert np.array_equal(other.ask(), original.ask())


def leaves_its_arguments_alone(make: Make) -> None:
    """Neither candidates nor fitness nor a loaded state is changed."""
    optimizer = make_small(make)
    candidates = optimizer.ask()
    fitness = _noisy_sphere(candidates, np.random.default_rng(0))
    kept = candidates.copy(), fitness.copy()
    candidates.flags.writeable = fitness.flags.writeable = False
    optimizer.tell(candidates, fitness)
    assert np.array_equal(candidates, kept[0])
    assert np.array_equal(fitness, kept[1])
    state = optimizer.state_dict()
    resumed = make_small(make)
    resumed.load_state_dict(state)
    advance(resumed, 2, np.random.default_rng(0))
    assert same(state, optimizer.state_dict())


def leaves_global_randomness_alone(make: Make) -> None:
    """It neither uses nor moves the global random streams of numpy and python."""
    runs = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 - the global stream is meant
        random.seed(seed)
        before = np.random.get_state(), random.getstate()  # noqa: NPY002 - as above
        optimizer = make_small(make)
        advance(optimizer, 4, np.random.default_rng(0))
        optimizer.load_state_dict(optimizer.state_dict())
        after = np.random.get_state(), random.getstate()  # noqa: NPY002 - as above
        assert str(before) == str(after)
        runs.append(optimizer.ask())
    assert np.array_equal(runs[0], runs[1])


def refuses_what_was_not_asked(make: Make) -> None:
    """Wrong shapes, foreign candidates, and a tell too many are one clear line, and change nothing."""
    optimizer = make_small(make)
    _refused(optimizer, np.zeros(SHAPE), np.zeros(POPULATION))
    candidates = optimizer.ask()
    fitness = _noisy_sphere(candidates, np.random.default_rng(0))
    for wrong in (candidates[:-1], candidates[:, :-1], candidates[0], candidates[::-1], candidates + 1e-9):
        _refused(optimizer, wrong, fitness[: len(wrong)])
    for wrong in (fitness[:-1], fitness[:, None], fitness[0], np.array(["much"] * POPULATION)):
        _refused(optimizer, candidates, wrong)
    optimizer.tell(candidates, fitness)
    _refused(optimizer, candidates, fitness)


def refuses_fitness_that_is_not_finite(make: Make) -> None:
    """One NaN or infinity among the fitness is one clear line, and changes nothing."""
    optimizer = make_small(make)
    candidates = optimizer.ask()
    for value in (np.nan, np.inf, -np.inf):
        fitness = _noisy_sphere(candidates, np.random.default_rng(0))
        fitness[2] = value
        _refused(optimizer, candidates, fitness)


def has_a_plain_state(make: Make) -> None:
    """A state is JSON but for its arrays, which are of numbers, so that no checkpoint needs a pickle."""
    optimizer = make_small(make)
    for _ in range(3):
        state = optimizer.state_dict()
        assert all(array.dtype.kind in "biuf" for array in _arrays(state))
        assert json.loads(json.dumps(_without_arrays(state))) == _without_arrays(state)
        advance(optimizer, 1, np.random.default_rng(0))
        optimizer.ask()


def resumes_to_the_bit(make: Make) -> None:
    """A fresh optimiser that loads a state goes on as the one that saved it, between ask and tell as well."""
    for generations, pending in ((0, False), (0, True), (7, False), (7, True)):
        original, resumed = make_small(make), make_small(make, seed=99)
        advance(original, generations, np.random.default_rng(0))
        if pending:
            original.ask()
        resumed.load_state_dict(original.state_dict())
        assert same(resumed.state_dict(), original.state_dict())
        assert np.array_equal(resumed.mean, original.mean)
        assert resumed.sigma == original.sigma
        for optimizer in (original, resumed):
            advance(optimizer, 30, np.random.default_rng(1))
        assert same(resumed.state_dict(), original.state_dict())
        assert np.array_equal(resumed.mean, original.mean)
        assert np.array_equal(resumed.ask(), original.ask())


def refuses_a_foreign_state(make: Make) -> None:
    """The state of another dimension or population, or a damaged one, is one clear line, and changes nothing."""
    donor = make_small(make)
    advance(donor, 2, np.random.default_rng(0))
    donor.ask()
    state = donor.state_dict()
    for other, foreign in (
        (make_small(make, dim=DIM + 1), state),
        (make_small(make, population=POPULATION + 2), state),
        (make_small(make), {}),
        *((make_small(make), {key: value for key, value in state.items() if key != gone}) for gone in state),
    ):
        before = other.state_dict()
        expect_refusal(OptimizerError, other.load_state_dict, foreign)
        assert same(other.state_dict(), before)


def improves_a_noisy_sphere(make: Make) -> None:
    """The recommendation ends nearer to the optimum than it began."""
    assert (_final_values(make, seeds=2) > 0.85 * -DIM).all()


def beats_random_search(make: Make) -> None:
    """With as many evaluations, the recommendation is better than random search's, by more than two standard errors."""
    gain = _final_values(make, SEEDS) - _final_values(RandomSearch, SEEDS)
    needed = 2 * gain.std(ddof=1) / np.sqrt(SEEDS)
    assert gain.mean() > needed, f"ahead of random search by {gain.mean():.3f}, expected more than {needed:.3f}"


def _final_values(make: Make, seeds: int) -> Array:
    """Return the noiseless fitness of the recommendation after a run, for each seed, shape (seeds,)."""
    values = []
    for seed in range(seeds):
        optimizer = make_small(make, seed=seed)
        advance(optimizer, GENERATIONS, np.random.default_rng(seed))
        values.append(-((optimizer.mean - 1.0) ** 2).sum())
    return np.array(values)


def _refused(optimizer: Optimizer, candidates: Array, fitness: Array) -> None:
    before = optimizer.state_dict()
    expect_refusal(OptimizerError, optimizer.tell, candidates, fitness)
    assert same(optimizer.state_dict(), before)


def _arrays(state: State) -> list[Array]:
    """Return all arrays of a state."""
    found = [value for value in state.values() if isinstance(value, np.ndarray)]
    for value in state.values():
        found += _arrays(value) if isinstance(value, dict) else []
    return found


def _without_arrays(state: State) -> State:
    return {
        key: _without_arrays(value) if isinstance(value, dict) else value
        for key, value in state.items()
        if not isinstance(value, np.ndarray)
    }


CLAIMS: tuple[Callable[[Make], None], ...] = (
    starts_at_zero,
    asks_the_same_until_told,
    repeats_with_its_seed,
    hands_out_no_live_state,
    copies_ask_the_same,
    leaves_its_arguments_alone,
    leaves_global_randomness_alone,
    refuses_what_was_not_asked,
    refuses_fitness_that_is_not_finite,
    has_a_plain_state,
    resumes_to_the_bit,
    refuses_a_foreign_state,
    improves_a_noisy_sphere,
    beats_random_search,
)
"""What every optimiser must hold to."""
