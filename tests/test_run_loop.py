"""The one loop of all runs: what it keeps, by which measure, when it stops, and that a killed run goes on the same."""

import json

import numpy as np
import pytest

from esalign.config.sections import RunSection
from esalign.errors import CheckpointError, ConfigError
from esalign.run.evaluate import HeldOut, HeldOutResult
from esalign.run.learner import MINUS_REVERSE_KL, REWARD, HeldOutSets, Step
from esalign.run.reporter import About
from esalign.run.run import Run
from esalign.run.step_back import LEAST, MIDDLE
from esalign.types import Completion, Example, Sampling

PROBLEMS = 16


class Scripted:
    """A learner whose scores on held-out problems are written down, by measure: a row of problems for each step."""

    def __init__(self, tables, *, flat=False, fingerprint="scripted"):
        self.measures, self.fingerprint = tuple(tables), fingerprint
        self.at, self._tables, self._flat = 0, tables, flat

    def advance(self, number):
        self.at = number
        return Step({"fitness": {"mean": float(number)}}, generated_tokens=10, flat=self._flat)

    def judge(self, measure, held_out, sampling):
        return HeldOutResult(np.array(self._tables[measure][self.at], dtype=float), generated_tokens=1)

    def kl_to_start(self, held_out, sampling):
        return float(self.at)

    def snapshot(self):
        return {"at": self.at}

    def restore(self, snapshot):
        self.at = snapshot["at"]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Quiet:
    def __init__(self):
        self.rows, self.warnings = [], []

    def start(self, about, folder, done):
        pass

    def stage(self, text, done=0, total=0):
        pass

    def generation(self, row):
        self.rows.append(row)

    def warn(self, text):
        self.warnings.append(text)


def right(count):
    """Scores of 16 problems of which the first so many are right."""
    return [1.0] * count + [0.0] * (PROBLEMS - count)


class Walking(Scripted):
    """A learner on a line, one unit a step. What its drawn completions earn is a function of the place.

    Each place draws a completion of its own, which no other place would draw.
    """

    def __init__(self, earned, between=12, **more):
        super().__init__({REWARD: [right(4), right(12), right(8)]}, **more)
        self._earned, self._between = earned, right(between)

    def judge(self, measure, held_out, sampling):
        if sampling.temperature > 0:
            count = len(held_out.examples)
            drawn = [Completion("", (round(100 * self.at),), "stop", 0.0)] * count
            return HeldOutResult(np.full(count, self._earned(self.at)), generated_tokens=1, completions=drawn)
        greedy = self._tables[measure][round(self.at)] if self.at == round(self.at) else self._between
        return HeldOutResult(np.array(greedy), generated_tokens=1)

    def log_probs(self, prompts, completions):
        return np.where([one.token_ids == (round(100 * self.at),) for one in completions], 0.0, -np.inf)

    def between(self, start, end, share):
        return {"at": start["at"] + share * (end["at"] - start["at"])}


def make_run(folder, learner, interrupts=(), flat_limit=0, sampling=None, keep_sampled=False, **limits):
    held_out = HeldOut([Example(f"problem {j}") for j in range(PROBLEMS)], pool=None)
    section = RunSection(**{"generations": len(learner._tables[learner.measures[0]]) - 1, "evaluate_every": 1} | limits)
    return Run(
        learner,
        folder,
        About("search", "scripted", section, max_tokens=8),
        sampling=sampling or Sampling(),
        held_out=HeldOutSets(held_out, held_out),
        flat_limit=flat_limit,
        kl_prompts=4,
        keep_sampled=keep_sampled,
        reporter=Quiet(),
        interrupts=interrupts,
    )


def generation_kept(tmp_path, counts, **limits):
    return make_run(tmp_path, Scripted({REWARD: [right(count) for count in counts]}), **limits).execute().generation


def test_the_state_that_validates_best_is_the_result(tmp_path):
    learner = Scripted({REWARD: [right(4), right(12), right(8)]})
    result = make_run(tmp_path, learner).execute()
    assert (result.generation, learner.at, result.kl) == (1, 1, 1.0)
    assert result.comparisons["test/greedy"].gain.mean == 0.5


@pytest.mark.parametrize(
    ("earned", "share"),
    [
        (lambda at: 0.5 + at, 1.0),
        (lambda at: 0.5, 1.0),
        (lambda at: 0.5 + at - 1.1 * at**2, 0.9),  # nothing is lost up to 0.909
        (lambda at: 0.5 + at - 1.3 * at**2, 0.76),
        (lambda at: 0.5 - at, LEAST),
    ],
)
def test_the_result_goes_back_where_sampled_completions_earn_less_than_at_the_start(tmp_path, earned, share):
    learner = Walking(earned)
    result = make_run(tmp_path, learner, keep_sampled=True).execute()
    assert (result.generation, result.share, learner.at) == (1, share, share)
    tried = {one: earned(one) - earned(0.0) for one in ([MIDDLE, 1.0] if earned(1.0) <= earned(0.0) else [1.0])}
    assert {one: gain.mean for one, gain in result.sampled_gains.items()} == pytest.approx(tried)
    assert result.comparisons["test/sampled"].gain.mean == pytest.approx(earned(share) - earned(0.0))


def test_it_stays_where_a_part_of_the_way_would_lose_what_was_gained(tmp_path):
    learner = Walking(lambda at: 0.5 - at, between=4)
    result = make_run(tmp_path, learner, keep_sampled=True).execute()
    assert (result.generation, result.share, learner.at) == (1, 1.0, 1.0)
    assert result.comparisons["test/greedy"].gain.mean == 0.5


@pytest.mark.parametrize(
    ("abstains", "share"),
    [([], 0.75), ([0.0], 1.0), ([0.5], 1.0), ([1.0], 1.0)],
)
def test_where_all_rewards_abstain_nothing_is_learnt(tmp_path, abstains, share):
    def earned(at):
        return np.nan if at in abstains else 0.5 + at - 4 / 3 * at**2  # nothing is lost up to 0.75

    result = make_run(tmp_path, Walking(earned), keep_sampled=True).execute()
    assert result.share == share


@pytest.mark.parametrize(
    ("learner", "settings"),
    [
        (Walking(lambda at: 0.5 - at), {"keep_sampled": False}),
        (Walking(lambda at: 0.5 - at), {"keep_sampled": True, "sampling": Sampling(temperature=0.7)}),
        (Scripted({REWARD: [right(4), right(12), right(8)]}), {"keep_sampled": True}),
    ],
)
def test_the_result_stays_where_it_is_if_nobody_asks_or_it_cannot_go_back(tmp_path, learner, settings):
    result = make_run(tmp_path, learner, **settings).execute()
    assert (result.share, result.sampled_gains) == (1.0, {})


def test_a_run_that_ends_at_its_start_does_not_go_back_further(tmp_path):
    learner = Walking(lambda at: 0.5 - at)
    learner._tables[REWARD][1:] = [right(2), right(3)]
    result = make_run(tmp_path, learner, keep_sampled=True).execute()
    assert (result.generation, result.share, learner.at) == (0, 1.0, 0)


def test_of_equal_states_the_later_is_kept(tmp_path):
    assert generation_kept(tmp_path, [4, 12, 12, 10]) == 2


def test_a_gain_within_its_standard_error_gives_way_to_the_start(tmp_path):
    assert generation_kept(tmp_path / "clear", [4, 7]) == 1  # three more are right, none is lost
    start = [1.0, 0.0] * 8
    other = [0.0, 1.0] * 7 + [1.0, 1.0]  # one more is right, but 15 of 16 changed
    learner = Scripted({REWARD: [start, other]})
    result = make_run(tmp_path / "noise", learner).execute()
    assert (result.generation, result.kl, learner.at) == (0, 0.0, 0)


def test_nothing_better_than_the_start_is_the_start(tmp_path):
    assert generation_kept(tmp_path, [8, 8, 4]) == 0


def test_a_tie_is_no_progress_for_patience(tmp_path):
    result = make_run(tmp_path, Scripted({REWARD: [right(4)] + [right(8)] * 9}), patience=2).execute()
    assert result.reason == "no better validation in 2 validations"
    assert result.generation == 3


TWO = {
    MINUS_REVERSE_KL: [[-2.0] * PROBLEMS, [-1.0] * PROBLEMS, [-1.5] * PROBLEMS],
    REWARD: [right(4), right(4), right(12)],
}


def test_a_learner_is_judged_by_the_measure_it_names_first(tmp_path):
    run = make_run(tmp_path, Scripted(TWO))
    result = run.execute()
    assert result.generation == 1
    assert next(iter(result.comparisons)) == "test/minus-reverse-kl"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation"]["mean"] for row in rows] == [-2.0, -1.0, -1.5]
    assert [row["validation/reward"]["mean"] for row in rows] == [0.25, 0.25, 0.75]


def test_select_by_overrides_it(tmp_path):
    result = make_run(tmp_path, Scripted(TWO), select_by=REWARD).execute()
    assert result.generation == 2
    assert next(iter(result.comparisons)) == "test/greedy"


def test_a_measure_that_the_learner_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.select_by is 'minus-reverse-kl', expected one of reward"):
        make_run(tmp_path, Scripted({REWARD: [right(1), right(2)]}), select_by=MINUS_REVERSE_KL)


def test_a_run_judged_by_another_measure_so_far_is_not_resumed(tmp_path):
    make_run(tmp_path, Scripted(TWO), generations=1).execute()
    with pytest.raises(CheckpointError, match=r"set run\.select_by to the former"):
        make_run(tmp_path, Scripted(TWO), select_by=REWARD)


def test_a_checkpoint_of_another_learner_is_refused(tmp_path):
    make_run(tmp_path, Scripted(TWO), generations=1).execute()
    with pytest.raises(CheckpointError, match="another adapter, space, student or version"):
        make_run(tmp_path, Scripted(TWO, fingerprint="other"))


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    tables = {REWARD: [right(count) for count in (2, 6, 10, 9, 10, 3)]}
    whole = make_run(tmp_path / "whole", Scripted(tables)).execute()
    assert make_run(tmp_path / "cut", Scripted(tables), interrupts=[1]).execute() is None
    resumed = make_run(tmp_path / "cut", Scripted(tables)).execute()
    assert resumed.generation == whole.generation == 4

    def reproducible(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "machine"} for row in rows]

    assert reproducible(tmp_path / "cut") == reproducible(tmp_path / "whole")


@pytest.mark.parametrize(
    "told", ["(50% of the way, validation, sampled)", "(50% of the way, probabilities)", "(test, greedy)"]
)
def test_an_interrupt_while_the_result_is_judged_stops_it_there_and_a_resumed_run_judges_it(told, tmp_path):
    def walking():
        return Walking(lambda at: 0.5 + 0.02 * at - 0.05 * at**2)

    whole = make_run(tmp_path / "whole", walking(), keep_sampled=True).execute()
    interrupts, stages = [], []

    def stage(text, done=0, total=0):
        stages.append(text)
        if text == f"judging the result {told}":
            interrupts.append(1)

    run = make_run(tmp_path / "cut", walking(), interrupts, keep_sampled=True)
    run._reporter.stage = stage
    assert run.execute() is None
    assert stages[-1].endswith(told)  # nothing was judged after it
    resumed = make_run(tmp_path / "cut", walking(), keep_sampled=True).execute()
    for found in ("share", "sampled_gains", "comparisons"):
        assert getattr(resumed, found) == getattr(whole, found)


@pytest.mark.parametrize("lowered", [3, 2])
def test_a_run_resumed_with_fewer_generations_validates_what_it_ends_with(tmp_path, lowered):
    tables = {REWARD: [right(count) for count in (2, 3, 6, 10, 8, 8)]}
    assert cut_after(tmp_path, tables, 3) is None
    for _ in range(2):  # the second time, all is there
        result = make_run(tmp_path, Scripted(tables), generations=lowered, evaluate_every=2).execute()
        assert result.generation == 3
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [row["generation"] for row in rows] == [0, 1, 2, 3]
        assert [row["validation"]["mean"] * 16 for row in rows if "validation" in row] == [2, 6, 10]


def cut_after(folder, tables, steps):
    """Run with a validation every two generations, interrupted after so many steps."""
    interrupts = []
    run = make_run(folder, Scripted(tables), interrupts, evaluate_every=2)
    run._reporter.generation = lambda row: interrupts.append(1) if row["generation"] == steps else None
    return run.execute()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_generated_tokens": 20}, "20 generated tokens are used up"),
        ({"max_minutes": 1e-12}, "1e-12 minutes are over"),
        ({}, "all 5 generations done"),
    ],
)
def test_a_run_says_why_it_stopped(tmp_path, limits, reason):
    assert make_run(tmp_path, Scripted({REWARD: [right(1)] * 6}), **limits).execute().reason == reason


def test_equal_candidates_stop_a_run_where_there_is_a_limit(tmp_path):
    tables = {REWARD: [right(1)] * 6}
    assert "same fitness for 2" in make_run(tmp_path / "a", Scripted(tables, flat=True), flat_limit=2).execute().reason
    assert "all 5" in make_run(tmp_path / "b", Scripted(tables, flat=True)).execute().reason
