"""Every optimiser holds to one contract, and each to its paper."""

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from esalign.errors import ConfigError, OptimizerError
from esalign.optimizers.cma_es import CmaEs, default_mean_rate
from esalign.optimizers.nevergrad import Nevergrad, Surroundings
from esalign.optimizers.openai_es import OpenAiEs
from esalign.optimizers.random_search import RandomSearch
from esalign.optimizers.ranks import centred_ranks
from esalign.run.checkpoint import load_state, save_state
from esalign.testing import optimizer as contract

NEVERGRAD = ("NGOpt", "PSO", "TwoPointsDE", "OnePlusOne", "CMA", "TBPSA", "DiagonalCMA")
MAKERS = {
    "cma-es full": functools.partial(CmaEs, covariance="full"),
    "cma-es diagonal": functools.partial(CmaEs, covariance="diagonal"),
    "openai-es": OpenAiEs,
    "random-search": RandomSearch,
    **{f"nevergrad:{name}": functools.partial(Nevergrad, name=name) for name in NEVERGRAD},
}


def sphere(candidates, optimum=1.0):
    return -((candidates - optimum) ** 2).sum(axis=1)


def run(optimizer, generations, fitness=sphere):
    for _ in range(generations):
        candidates = optimizer.ask()
        optimizer.tell(candidates, fitness(candidates))
    return optimizer


QUICK_MEMBER = "nevergrad:TwoPointsDE"  # the other members of nevergrad hold the contract in the whole suite
ALL_MAKERS = [
    pytest.param(name, marks=pytest.mark.slow if "nevergrad" in name and name != QUICK_MEMBER else ())
    for name in MAKERS
]


@pytest.mark.parametrize("claim", contract.CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("name", ALL_MAKERS)
def test_contract(name, claim):
    if name == "random-search" and claim is contract.beats_random_search:
        pytest.skip("nothing beats itself")
    claim(MAKERS[name])


@pytest.mark.parametrize("name", MAKERS)
def test_state_survives_a_checkpoint(name, tmp_path):
    original = run(contract.make_small(MAKERS[name]), 3)
    original.ask()
    save_state(original.state_dict(), tmp_path / "state.npz")
    resumed = contract.make_small(MAKERS[name])
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    assert contract.same(run(resumed, 3).state_dict(), run(original, 3).state_dict())


@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda original: pickle.loads(pickle.dumps(original))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("name", ALL_MAKERS)
def test_copies_and_pickles_share_no_random_stream(name, duplicate):
    original = run(contract.make_small(MAKERS[name]), 2)
    original.ask()
    other = duplicate(original)
    assert contract.same(run(original, 3).state_dict(), run(other, 3).state_dict())


@pytest.mark.parametrize("one", MAKERS)
def test_state_of_another_optimizer_is_refused(one):
    state = run(contract.make_small(MAKERS[one]), 1).state_dict()
    for other, make in MAKERS.items():
        if other != one:
            with pytest.raises(OptimizerError, match="the state has"):
                contract.make_small(make).load_state_dict(state)


@pytest.mark.parametrize("name", ["cma-es full", "openai-es", "random-search", "nevergrad:PSO"])
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dim", 0, "dim is 0"),
        ("dim", 2.5, "dim is 2.5"),
        ("sigma", 0.0, "sigma is 0.0, expected a finite number above 0"),
        ("sigma", float("nan"), "sigma is nan"),
        ("sigma", "wide", "sigma is 'wide'"),
        ("population", 0, "population is 0"),
        ("population", True, "population is True"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_wrong_settings_are_refused(name, setting, value, message):
    with pytest.raises(OptimizerError, match=message):
        contract.make_small(MAKERS[name], **{setting: value})


# --- cma-es ---


def test_covariance_and_recombination_are_chosen_by_dimension():
    def kinds(dim):
        state = CmaEs(dim=dim, sigma=0.3, population=8, seed=0).state_dict()
        return state["covariance"], state["recombination"]

    assert (kinds(200), kinds(201)) == (("full", "better-half"), ("diagonal", "all"))


def test_diagonal_cma_state_grows_linearly_with_the_dimension():
    state = run(CmaEs(dim=5000, sigma=0.3, population=8, seed=0), 2).state_dict()
    assert max(np.size(value) for value in state.values()) == 5000


@pytest.mark.slow
def test_diagonal_cma_learns_scales_that_full_cma_has_not_learnt_yet():
    """Ros and Hansen's reason for the separable variant: its learning rates are larger by about dim / 3."""
    weights = 100.0 ** np.linspace(0, 1, 150)
    left = {}
    for covariance in ("diagonal", "full"):
        textbook = {"mean_rate": 1.0, "recombination": "better-half"}
        optimizer = CmaEs(dim=150, sigma=0.3, population=24, seed=0, covariance=covariance, **textbook)
        run(optimizer, 300, lambda candidates: -(weights * (candidates - 1) ** 2).sum(axis=1))
        left[covariance] = (weights * (optimizer.mean - 1) ** 2).sum() / weights.sum()
    assert left["diagonal"] < left["full"] / 5 < 0.2


def test_full_cma_learns_correlations():
    """On a ridge along the diagonal of the plane, the covariance turns along it."""
    optimizer = CmaEs(dim=2, sigma=0.3, population=16, seed=0, covariance="full")
    run(optimizer, 40, lambda x: -((x[:, 0] - x[:, 1]) ** 2) - 1e-3 * ((x[:, 0] + x[:, 1] - 20) ** 2))
    covariance = optimizer.state_dict()["C"]
    assert covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]) > 0.8


def test_small_mean_rate_holds_out_against_noise_in_many_dimensions():
    """At rate 1 the mean's random walk outruns what it learns; at the default less so, least if all count."""

    def distance(**options):
        rng = np.random.default_rng(0)
        optimizer = CmaEs(dim=2048, sigma=0.3, population=24, seed=0, **options)
        run(optimizer, 60, lambda x: sphere(x, 0.5) + 13.6 * rng.standard_normal(len(x)))
        return np.sqrt(-sphere(optimizer.mean[None], 0.5)[0])

    start = 0.5 * np.sqrt(2048)
    assert distance() < distance(recombination="better-half") - 0.03 * start < 0.94 * start
    assert distance(mean_rate=1.0) > 1.04 * start
    assert distance(mean_rate=1.0, recombination="better-half") > 1.2 * start


def test_mean_rate_falls_with_dimensions_per_candidate_and_with_time():
    rates = [default_mean_rate(dim, 24, 24) for dim in (64, 768, 2048, 8192)]
    assert rates == pytest.approx([0.25, 0.25, 0.25, 0.153], abs=1e-3)
    first, whole = (CmaEs(dim=256, sigma=0.3, population=24, seed=0, **options) for options in ({}, {"mean_rate": 1.0}))
    assert np.array_equal(run(first, 1).mean, run(whole, 1).mean)
    rates = [first._mean_rate(generation) for generation in range(1, 99)]
    assert rates == sorted(rates, reverse=True)
    assert rates[29:] == [0.25] * 69


def test_all_candidates_count_or_the_better_half():
    """Where fitness is turned upside down, the mean goes the opposite way only if the worse count as the better do."""

    def cosine(recombination):
        steps = []
        for sign in (1, -1):
            optimizer = CmaEs(dim=300, sigma=0.3, population=24, seed=0, recombination=recombination)
            steps.append(run(optimizer, 1, lambda x, sign=sign: sign * x[:, 0]).mean)
        return steps[0] @ steps[1] / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1])

    assert cosine("all") < -0.95
    assert abs(cosine("better-half")) < 0.3


def test_generation_of_equal_fitness_teaches_cma_nothing():
    optimizer = run(CmaEs(dim=10, sigma=0.3, population=8, seed=0), 5)
    mean, sigma, candidates = optimizer.mean, optimizer.sigma, optimizer.ask()
    optimizer.tell(candidates, np.full(8, 0.25))
    assert np.array_equal(optimizer.mean, mean)
    assert optimizer.sigma == sigma
    assert not np.array_equal(optimizer.ask(), candidates)


@pytest.mark.parametrize("population", [4, 5, 6, 7, 24])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_cma_asks_for_the_population_it_was_given(population, covariance):
    optimizer = CmaEs(dim=9, sigma=0.3, population=population, seed=0, covariance=covariance)
    for _ in range(5):
        assert optimizer.ask().shape == (population, 9)
        run(optimizer, 1)


def test_cma_never_stops_and_says_nothing(tmp_path, monkeypatch, capfd, recwarn):
    """On a converged sphere, where pycma's stop conditions would fire, it goes on; no file, no print, no warning."""
    monkeypatch.chdir(tmp_path)
    for scale in (1.0, 1e200):
        optimizer = run(CmaEs(dim=2, sigma=0.3, population=6, seed=0), 400, lambda x, s=scale: s * sphere(x))
        assert np.allclose(optimizer.mean, 1.0)
        assert optimizer.ask().shape == (6, 2)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "sparse"}, "covariance is 'sparse', expected 'auto', 'full' or 'diagonal'"),
        ({"recombination": "worse-half"}, "recombination is 'worse-half', expected 'auto', 'better-half' or 'all'"),
        ({"mean_rate": 0.0}, "mean_rate is 0.0, expected a finite number above 0 and of at most 1"),
        ({"mean_rate": 1.5}, "mean_rate is 1.5"),
        ({"step_damping": -1.0}, "step_damping is -1.0"),
        ({"population": 3}, "population is 3, expected an integer of at least 4"),
        ({"dim": 1}, "cma-es needs a search space of at least 2 numbers, got one of 1: set space.tie to at least 2"),
    ],
)
def test_cma_refuses_options_out_of_range(options, message):
    with pytest.raises(OptimizerError, match=message):
        contract.make_small(CmaEs, **options)


# --- openai-es ---


def test_openai_es_samples_mirrored_pairs():
    optimizer = run(contract.make_small(OpenAiEs), 3)
    steps = optimizer.ask() - optimizer.mean
    assert np.allclose(steps[: contract.POPULATION // 2], -steps[contract.POPULATION // 2 :])


def test_first_step_of_openai_es_is_the_learning_rate_along_the_sign_of_the_gradient():
    """Adam's first step, with its bias corrected, is alpha sign(g): the paper's equation by hand."""
    optimizer = contract.make_small(OpenAiEs, learning_rate=0.02)
    candidates = optimizer.ask()
    fitness = sphere(candidates)
    gradient = centred_ranks(fitness) @ candidates
    optimizer.tell(candidates, fitness)
    assert np.allclose(optimizer.mean, 0.02 * np.sign(gradient), rtol=1e-6)


def test_openai_es_equals_adam_of_torch():
    torch = pytest.importorskip("torch")
    optimizer = contract.make_small(OpenAiEs, learning_rate=0.02, weight_decay=0.1, beta2=0.99)
    theta = torch.zeros(contract.DIM, dtype=torch.float64)
    reference = torch.optim.AdamW([theta], lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for _ in range(20):
        candidates = optimizer.ask()
        epsilon = (candidates - optimizer.mean) / contract.SIGMA
        gradient = centred_ranks(sphere(candidates)) @ epsilon / (contract.POPULATION * contract.SIGMA)
        theta.grad = torch.from_numpy(-gradient)
        reference.step()
        optimizer.tell(candidates, sphere(candidates))
        assert np.allclose(optimizer.mean, theta.numpy(), rtol=1e-9, atol=1e-12)


def test_weight_decay_pulls_towards_the_start():
    free = run(contract.make_small(OpenAiEs), 200)
    held = run(contract.make_small(OpenAiEs, weight_decay=0.5), 200)
    assert 0 < np.linalg.norm(held.mean) < 0.9 * np.linalg.norm(free.mean)


def test_ranks_ignore_the_scale_of_fitness_and_share_ties():
    assert np.array_equal(centred_ranks(np.array([-3.0, 1e9, 5.0])), [-0.5, 0.5, 0.0])
    assert np.allclose(centred_ranks(np.array([2.0, 1.0, 2.0, 2.0])), [1 / 6, -1 / 2, 1 / 6, 1 / 6])
    assert np.array_equal(centred_ranks(np.full(4, 7.0)), np.zeros(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 7}, "population is 7, expected an even number"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"beta1": 1.0}, "beta1 is 1.0, expected a finite number of at least 0 and below 1"),
    ],
)
def test_openai_es_refuses_options_out_of_range(options, message):
    with pytest.raises(OptimizerError, match=message):
        contract.make_small(OpenAiEs, **options)


# --- random search ---


def test_random_search_recommends_the_fittest_candidate_it_ever_saw():
    optimizer = contract.make_small(RandomSearch)
    seen, told = [], []
    for _ in range(5):
        candidates = optimizer.ask()
        optimizer.tell(candidates, sphere(candidates))
        seen.append(candidates)
        told.append(sphere(candidates))
    assert np.array_equal(optimizer.mean, np.concatenate(seen)[np.concatenate(told).argmax()])


# --- nevergrad ---


def test_unknown_nevergrad_name_gets_a_hint():
    with pytest.raises(ConfigError, match=r"unknown optimizer 'nevergrad:TwoPointDE', did you mean 'TwoPointsDE'\?"):
        contract.make_small(Nevergrad, name="TwoPointDE")


def test_sequential_nevergrad_optimizer_takes_a_population_of_one():
    with pytest.raises(
        OptimizerError, match="nevergrad:Powell asks for one candidate at a time: population is 8, not 1"
    ):
        contract.make_small(Nevergrad, name="Powell")
    optimizer = contract.make_small(Nevergrad, name="Powell", population=1)
    assert sphere(run(optimizer, 150).mean[None])[0] > 0.85 * -contract.DIM


@pytest.mark.slow
def test_program_ends_while_a_sequential_nevergrad_optimizer_waits_in_its_thread():
    code = """
        from esalign.registry import make_optimizer
        optimizer = make_optimizer("nevergrad:Powell", dim=5, population=1)
        optimizer.tell(optimizer.ask(), [1.0])
        optimizer.ask()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_nevergrad_names_a_package_that_its_optimizer_lacks():
    pytest.importorskip("nevergrad")
    with pytest.raises(OptimizerError, match="nevergrad:NLOPT_GN_DIRECT needs the package 'nlopt'"):
        contract.make_small(Nevergrad, name="NLOPT_GN_DIRECT", population=1).ask()


def test_failure_inside_nevergrad_is_one_clear_line_and_gives_the_global_streams_back():
    def fail():
        np.random.rand()  # noqa: NPY002 - the global stream is meant
        raise ArithmeticError("it broke\nin two lines")

    before = str(np.random.get_state())  # noqa: NPY002 - as above
    with pytest.raises(OptimizerError, match=r"^nevergrad:Odd failed: it broke in two lines$"):
        _inside(fail)
    assert str(np.random.get_state()) == before  # noqa: NPY002 - as above


def _inside(call):
    with Surroundings("Odd", seed=0).entered():
        call()


@pytest.mark.parametrize("name", ["DiagonalCMA", "NGOpt"])
def test_nevergrad_serves_many_dimensions_with_few_candidates(name):
    """Where pycma's own choice of step-size adaptation would not stand being asked for single candidates."""
    optimizer = Nevergrad(name=name, dim=400, sigma=0.3, population=4, seed=0)
    assert run(optimizer, 12).ask().shape == (4, 400)


def test_nevergrad_state_that_does_not_replay_is_refused():
    original = run(contract.make_small(MAKERS["nevergrad:OnePlusOne"]), 3)
    state = original.state_dict()
    state["fitness"] *= -1
    fresh = contract.make_small(MAKERS["nevergrad:OnePlusOne"])
    before = fresh.state_dict()
    with pytest.raises(OptimizerError, match="asked other candidates when its run was replayed"):
        fresh.load_state_dict(state)
    assert contract.same(fresh.state_dict(), before)


def test_nevergrad_plans_by_its_budget():
    """DE's one-shot kin spread their whole budget over the space: another budget, other candidates."""
    one, other = (contract.make_small(Nevergrad, name="ScrHammersleySearch", budget=b) for b in (100, 200))
    assert not np.array_equal(one.ask(), other.ask())


def test_nevergrad_optimizer_that_draws_from_the_global_stream_repeats_with_its_seed():
    """This one does: `leaves_global_randomness_alone` holds for it too."""
    make = functools.partial(Nevergrad, name="LognormalDiscreteOnePlusOne")
    contract.leaves_global_randomness_alone(make)
    contract.resumes_to_the_bit(make)


# --- the guide ---


@pytest.mark.parametrize("claim", contract.CLAIMS, ids=lambda claim: claim.__name__)
def test_optimizer_of_the_guide_holds_to_the_contract(claim):
    claim(guide_optimizer())


@functools.cache
def guide_optimizer():
    text = (Path(__file__).parents[1] / "docs" / "optimizers.md").read_text()
    code = text.partition("# my_search.py\n")[2].partition("```")[0]
    names = {}
    exec(code, names)
    return names["Climb"]
