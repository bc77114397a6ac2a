"""`esalign probe` measures what mirrored candidates of several step sizes earn, and proposes a run's settings."""

import dataclasses
import io
import json
import math
from functools import partial

import numpy as np
import pytest
from quick_runs import write_quick_run
from rich.console import Console
from runs import esalign

from esalign.commands import build
from esalign.commands.probe import probe
from esalign.errors import ConfigError, RewardError
from esalign.files import finite
from esalign.fitness.completions import Completed
from esalign.report.terminal import show_probe
from esalign.run.first_step import FirstStep
from esalign.run.signal import PAIRS, Probed, Signal, measure, propose
from esalign.testing.fake import FakeBackend
from esalign.types import Completion

REWARD = "def right(prompts, completions, answer):\n    return [float(a == b) for a, b in zip(completions, answer)]\n"


def write_best_at(best):
    """Return what the fake writes: right where the first number of the vector is positive, silence far away.

    The first number decides at a distance of the start that differs between problems; farther than 4 * best, where
    mirrored candidates fail alike, nothing is written.
    """

    def write(candidate, prompt):
        a, b = (int(part) for part in prompt.removesuffix("=").split("+"))
        far = float(np.linalg.norm(candidate)) / math.sqrt(len(candidate))
        if far > 4 * best:
            return ""
        decided = abs(candidate[0]) > best * (a + 1) / 8
        right = (candidate[0] > 0) if decided else b % 2 == 0
        return str(a + b) if right else "no"

    return write


def write_probe(folder, **changes):
    (folder / "right.py").write_text(REWARD)
    return write_quick_run(folder, fitness__prompts=32, rewards=[{"name": f"{folder / 'right.py'}:right"}], **changes)


@pytest.fixture
def told(monkeypatch):
    """Let the engine write what a function of (vector, prompt) says, which no configuration file can hold."""

    def tell(write):
        made = partial(FakeBackend, completions=write, confidence=60.0)
        monkeypatch.setattr(build, "load_backend", lambda _name, **settings: made(**settings))

    return tell


@pytest.mark.parametrize("base", [0.5, 1.0, 2.0])
def test_the_proposal_finds_the_sigma_at_which_candidates_differ_most_from_wherever_it_begins(tmp_path, told, base):
    told(write_best_at(1.0))
    probed = probe(write_probe(tmp_path, optimizer__sigma=base))
    assert probed.proposal.by_signal
    assert 1.0 <= probed.proposal.sigma <= 2.0
    assert [one.step.sigma for one in probed.signals] == [factor * base for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert probed.chosen.usable == max(one.usable for one in probed.signals if not one.damages)
    assert probed.overrides == f"optimizer.sigma={probed.proposal.sigma:g} fitness.prompts=16 optimizer.population=12"


@pytest.mark.parametrize(("base", "sigmas"), [(1000.0, [250, 500, 1000]), (300.0, [75, 150, 300, 600])])
def test_no_sigma_is_tried_that_a_run_would_refuse(tmp_path, told, base, sigmas):
    told(lambda _candidate, _prompt: "no")
    probed = probe(write_probe(tmp_path, optimizer__sigma=base))
    assert [one.step.sigma for one in probed.signals] == sigmas
    assert not probed.proposal.at_edge  # there is nothing beyond


def test_the_share_of_sampled_problems_is_probed_as_a_run_would_have_it(tmp_path, monkeypatch):
    seen, generate = [], FakeBackend.generate

    def note(self, candidates, prompts, sampling, on_completion=None):
        seen.append((sampling.temperature, sampling.greedy, len(prompts)))
        return generate(self, candidates, prompts, sampling, on_completion)

    monkeypatch.setattr(FakeBackend, "generate", note)
    probe(write_quick_run(tmp_path, fitness={"prompts": 32, "options": {"sampled": 0.25}}))
    assert seen == [(1.0, 24, 32)]


def test_what_nothing_tells_apart_is_said_and_sigma_is_the_largest_that_does_no_damage(tmp_path, told):
    told(lambda _candidate, _prompt: "no")
    probed = probe(write_probe(tmp_path))
    assert not probed.proposal.by_signal
    assert [one.flat(100) for one in probed.signals] == [1.0] * 5
    assert all(math.isnan(one.mirrored) and one.usable == 0 and not one.clear for one in probed.signals)
    assert "no signal is clear with 32 prompts" in probed.concerns[0]


def test_chance_alone_is_clear_at_some_step_size_in_one_of_twenty_probes_at_most():
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(400):
        rewards = rng.standard_normal((5 * 2 * PAIRS, 48))
        signals = measure((0.175, 0.35, 0.7, 1.4, 2.8), completed(rewards), samples=1)
        called += any(one.clear for one in signals)
    assert called < 0.07 * 400


def completed(rewards, start=0.0):
    """Return what candidates earned, (candidates, prompts), behind a start that always earns the same."""
    rows = [[Completion("a", (1, 2), "stop")] * rewards.shape[1] for _ in range(1 + len(rewards))]
    return Completed(rows, np.vstack([np.broadcast_to(start, rewards.shape[1]), rewards]), {}, {})


def earn(*, odd, even, noise, prompts, seed=0):
    """Return rewards of mirrored pairs: mean +- odd x + even y + noise, x and y being normal by pair."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, PAIRS, 1))
    pairs = [sign * odd * x + even * y + noise * rng.standard_normal((PAIRS, prompts)) for sign in (1, -1)]
    return np.vstack(pairs), float(odd**2 * np.mean(x**2))


def test_signal_is_the_variance_that_prompts_do_not_explain():
    found = []
    for seed in range(200):
        rewards, truth = earn(odd=0.05, even=0.1, noise=0.5, prompts=24, seed=seed)
        [signal] = measure([1.0], completed(rewards), samples=1)
        assert signal.noise == pytest.approx(0.125, rel=0.6)  # half the variance of one completion
        found.append((signal.half - signal.noise / 24) - truth)
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found) / 200**0.5)


def test_mirrored_correlation_tells_direction_from_damage():
    directed, _ = earn(odd=1.0, even=0.1, noise=0.0, prompts=4)
    damaged, _ = earn(odd=0.1, even=1.0, noise=0.0, prompts=4)
    assert measure([1.0], completed(directed), samples=1)[0].mirrored < -0.9
    assert measure([1.0], completed(damaged), samples=1)[0].mirrored > 0.8


def test_samples_of_a_prompt_are_averaged_and_prompts_with_an_abstention_left_out():
    rewards, _ = earn(odd=1.0, even=0.2, noise=0.3, prompts=6)
    twice = np.repeat(rewards, 2, axis=1) + np.tile([0.25, -0.25], 6)
    [plain], [averaged] = (measure([1.0], completed(found), samples=n) for n, found in ((1, rewards), (2, twice)))
    assert averaged.half == pytest.approx(plain.half)
    assert averaged.noise == pytest.approx(plain.noise)
    rewards[3, 2] = np.nan
    [fewer] = measure([1.0], completed(rewards), samples=1)
    assert fewer.prompts == 5
    without = measure([1.0], completed(np.delete(rewards, 2, axis=1)), samples=1)[0]
    assert fewer == dataclasses.replace(without, of=6)
    rewards[0, 1:] = np.nan
    with pytest.raises(RewardError, match="all of 6 prompts but one at most, expected at least 2"):
        measure([1.0], completed(rewards), samples=1)


def test_a_step_size_at_which_the_rewards_abstain_is_taken_for_damage_and_does_not_end_the_probe():
    rewards = np.random.default_rng(0).standard_normal((4 * 2 * PAIRS, 24))
    rewards[4 * PAIRS :, 11:] = np.nan
    rewards[6 * PAIRS :, 1:] = np.nan
    signals = measure([1.0, 2.0, 4.0, 8.0], completed(rewards), samples=1)
    assert [one.prompts for one in signals] == [24, 24, 11, 1]
    assert [one.damages for one in signals] == [False, False, True, True]
    probed = Probed(0.0, tuple(signals), propose(signals, dim=256, prompts=24, most_prompts=1000), 4, 9.0)
    assert probed.proposal.sigma < 4
    assert not probed.proposal.at_edge
    assert probed.concerns[0].startswith("at sigma 4, 8 the rewards abstained on most prompts")
    assert json.loads(json.dumps(finite(probed.row())))["signals"][3]["equal"] is None
    console = Console(file=io.StringIO(), width=120, color_system=None)
    show_probe(console, probed)
    shown = " ".join(console.file.getvalue().split())
    assert "24 prompts" in shown
    assert "nan" not in shown


def signal(sigma, *, broken=0.0, lost=0.0, half=0.01, noise=0.1):
    step = FirstStep(sigma, 0.5, broken, 0.0)
    return Signal(
        step, reward=0.5, lost=lost, mirrored=-0.5, half=half, noise=noise, prompts=100, of=100, equal=0.2, tokens=9.0
    )


@pytest.mark.parametrize(
    ("signals", "sigma", "prompts", "by_signal", "at_edge"),
    [
        (
            [signal(1, half=0.004), signal(2, noise=0.3), signal(4, half=0.005)],
            2,
            40,
            True,
            False,
        ),  # 2 * 0.3 / 0.007 * 0.3 / 0.7 = 37
        ([signal(1), signal(2, half=0.1, broken=0.9), signal(4, half=0.005)], 1, 16, True, True),
        ([signal(1), signal(2, noise=0), signal(4, half=0.011)], 2, 16, True, False),
        ([signal(1, half=1), signal(2), signal(4)], 1, 16, True, True),
        ([signal(1, half=0.01, noise=0.9), signal(2), signal(4)], 2, 16, True, False),
        ([signal(1), signal(2), signal(4, half=0.1, lost=0.6)], 1, 16, True, True),
        ([signal(1, half=0.001), signal(2, half=0.001), signal(4, lost=0.6)], 2, 48, False, False),
        ([signal(1, half=0.001), signal(2, half=0.001), signal(4, half=0.001)], 4, 48, False, True),
        ([signal(s, broken=0.9) for s in (1, 2, 4)], 1, 48, False, True),
    ],
)
def test_rule_of_the_proposal(signals, sigma, prompts, by_signal, at_edge):
    found = propose(signals, dim=256, prompts=48, most_prompts=1000)
    assert (found.sigma, found.prompts, found.by_signal, found.at_edge) == (sigma, prompts, by_signal, at_edge)
    assert found.population == 24


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (3.0, -10.0), (0.1, 0.2)])
def test_damage_does_not_depend_on_where_rewards_have_their_zero(scale, shift):
    rewards = np.random.default_rng(0).choice([0.0, 1.0], p=[0.8, 0.2], size=(2 * 2 * PAIRS, 64))
    rewards[: 2 * PAIRS] = 1 - rewards[: 2 * PAIRS]  # right in 0.8, then in 0.2
    signals = measure([1.0, 2.0], completed(scale * rewards + shift, start=scale * 0.7 + shift), samples=1)
    assert [one.damages for one in signals] == [False, True]
    assert signals[1].lost == pytest.approx(1 - 0.2 / 0.7, abs=0.1)


def test_what_is_lost_is_of_the_same_prompts_and_needs_no_other_step_size():
    rewards = np.random.default_rng(0).choice([-7.0, -6.0], size=(3 * 2 * PAIRS, 24))
    signals = measure([1.0, 2.0, 4.0], completed(rewards, start=-1.0), samples=1)
    assert all(one.damages for one in signals)
    rewards[-1, 0] = -1000.0  # at sigma 4 alone
    assert signals[:2] == measure([1.0, 2.0, 4.0], completed(rewards, start=-1.0), samples=1)[:2]
    start = np.repeat([1.0, 0.0], 12)  # right on the first twelve, where alone candidates are judged
    rewards = np.full((2 * PAIRS, 24), np.nan)
    rewards[:, :12] = np.random.default_rng(0).choice([0.0, 1.0], p=[0.7, 0.3], size=(2 * PAIRS, 12))
    [signal] = measure([1.0], completed(rewards, start=start), samples=1)
    assert signal.lost == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("judged", [5, 7, 11, 24])
def test_where_the_start_earned_no_more_than_the_least_nothing_can_be_lost(judged):
    rewards = np.full((2 * PAIRS, 24), 0.1)
    rewards[:, judged:] = np.nan
    assert math.isnan(measure([1.0], completed(rewards, start=0.1), samples=1)[0].lost)


@pytest.mark.parametrize(("dim", "population"), [(4, 12), (256, 24), (1792, 28), (8192, 64)])
def test_population_and_prompts_stay_within_what_there_is(dim, population):
    found = propose([signal(1), signal(2), signal(4)], dim=dim, prompts=48, most_prompts=12)
    assert (found.population, found.prompts) == (population, 12)


def test_the_table_has_a_row_for_each_sigma_and_the_proposal_can_be_pasted(tmp_path, told):
    told(write_best_at(1.0))
    console = Console(file=io.StringIO(), width=120, color_system=None)
    show_probe(console, probe(write_probe(tmp_path, optimizer__sigma=1.0)))
    shown = console.file.getvalue()
    assert [line.split()[0] for line in shown.splitlines() if "%" in line][:6] == [
        "start",
        "0.25",
        "0.5",
        "1",
        "2",
        "4",
    ]
    assert "optimizer.population=12" in shown
    assert "6 generations of 12 candidates x 16 problems" in " ".join(shown.split())


def test_what_the_run_chooses_itself_is_not_proposed(tmp_path, told):
    told(write_best_at(1.0))
    probed = probe(write_probe(tmp_path, optimizer__sigma=1.0, fitness={}))
    assert probed.overrides == f"optimizer.sigma={probed.proposal.sigma:g} optimizer.population=12"


def test_where_all_does_damage_that_is_said():
    def concerns(*signals):
        return Probed(0.6, signals, propose(signals, dim=256, prompts=48, most_prompts=1000), 4, 9.0).concerns

    assert "every sigma that was tried does damage" not in " ".join(concerns(signal(1), signal(2, lost=0.6)))
    assert concerns(signal(1, lost=0.6), signal(2, lost=0.6))[0] == (
        "every sigma that was tried does damage, so this is the smallest"
    )


def test_it_writes_json_and_no_run(tmp_path):
    file = tmp_path / "probe.json"
    counted = []
    probed = probe(write_probe(tmp_path), output=file, progress=lambda *at: counted.append(at))
    written = json.loads(file.read_text())
    assert written["proposal"]["sigma"] == probed.proposal.sigma
    assert [row["usable"] for row in written["signals"]] == [one.usable for one in probed.signals]
    assert counted[-1] == (41 * 32, 41 * 32)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="exists"):
        probe(write_probe(tmp_path), output=file)


def test_what_it_cannot_probe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="only 'reward' can be probed"):
        probe(write_probe(tmp_path, fitness={"name": "surrogate"}))
    few = {"source": str(tmp_path / "data.jsonl"), "train_size": 1, "validation_size": 8, "test_size": 16}
    with pytest.raises(ConfigError, match="there is 1 training problem, expected at least 2"):
        probe(write_probe(tmp_path, data=few))


@pytest.mark.slow
def test_on_the_shipped_model_it_proposes_a_sigma_that_is_good_there(tmp_path):
    """A sweep of 0.125 to 2 was best at 0.5, and good at 1: docs/runs.md; the grid is 0.175, 0.35, 0.7, 1.4, 2.8."""
    small = ["data.validation_size=8", "data.test_size=8", "fitness.prompts=48", "probe=null", "backend.self_test=0"]
    done = esalign("probe", *small, "--output", tmp_path / "probe.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "probe.json").read_text())["proposal"]["sigma"] in (0.7, 1.4)
    assert "optimizer.sigma=" in done.stdout
    again = esalign("probe", *small, "--output", tmp_path / "probe.json")
    assert (again.returncode, again.stderr.count("\n"), "exists" in again.stderr) == (2, 1, True)
