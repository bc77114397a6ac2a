"""A search within a budget: candidates too far from the start rank last, and the mean stays near it."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from quick_runs import Recorder, run_quickly, write_quick_run
from runs import reproducible

from esalign.fitness.budget import WithinBudget
from esalign.run.evaluate import kl_to_start
from esalign.testing import FakeBackend
from esalign.types import Evaluation, Example, Sampling

EXAMPLES = [Example(prompt=f"{a} + {b} =", columns={}) for a in range(40) for b in range(20)]
SAMPLING = Sampling(max_tokens=8, temperature=0.0, top_k=5, stop=("=",))


class Distance:
    """A fitness that wants to be far away."""

    def prepare(self, mean, generation):
        pass

    def evaluate(self, candidates):
        return Evaluation(fitness=np.abs(candidates).sum(axis=1), metrics={"mine": 1.0}, generated_tokens=5)

    def state_dict(self):
        return {"mine": 7}

    def load_state_dict(self, state):
        assert state == {"mine": 7}


@pytest.fixture
def backend():
    return FakeBackend("any", SimpleNamespace(dim=4))


def test_candidates_beyond_the_budget_rank_last_the_farther_the_lower(backend):
    fitness = WithinBudget(Distance(), backend, EXAMPLES, SAMPLING, budget=0.05)
    fitness.prepare(np.zeros(4), 1)
    direction = np.random.default_rng(0).standard_normal(4)
    found = fitness.evaluate(np.outer([0.0, 0.01, 0.02, 3.0, 6.0], direction))
    assert list(np.argsort(found.fitness)) == [4, 3, 0, 1, 2]
    assert found.metrics["beyond_kl_budget"] == 0.4
    assert found.metrics["mine"] == 1.0
    wide = WithinBudget(Distance(), backend, EXAMPLES, SAMPLING, budget=1000.0)
    wide.prepare(np.zeros(4), 1)
    assert_allclose(wide.evaluate(np.eye(4)).fitness, Distance().evaluate(np.eye(4)).fitness)


def test_the_divergence_is_that_of_the_start_to_the_candidate(backend):
    """KL is quadratic near the start, where both directions agree: the other one is measured as a run's result is."""
    vector = np.full(4, 0.15)
    fitness = WithinBudget(Distance(), backend, EXAMPLES, SAMPLING, budget=1.0, prompts=300)
    fitness.prepare(np.zeros(4), 1)
    mine = fitness.evaluate(vector[None]).metrics["kl_to_start"]
    theirs = kl_to_start(backend, vector, EXAMPLES, Sampling(max_tokens=8, temperature=1.0, stop=("=",)))
    assert mine == pytest.approx(theirs, rel=0.2)
    fitness.prepare(vector, 2)  # the start it is, wherever the mean may be
    assert fitness.evaluate(vector[None]).metrics["kl_to_start"] == pytest.approx(mine, rel=0.1)
    assert fitness.evaluate(np.zeros((1, 4))).metrics["kl_to_start"] == 0


def test_tokens_are_counted_and_the_state_is_the_fitness_own(backend):
    fitness = WithinBudget(Distance(), backend, EXAMPLES, SAMPLING, budget=0.05, prompts=3)
    fitness.prepare(np.zeros(4), 1)
    found = fitness.evaluate(np.zeros((2, 4)))
    written, read = found.generated_tokens - 5, found.prompt_tokens
    assert 3 <= written <= 24
    assert found.scored_tokens == 3 * (written + read)
    fitness.load_state_dict(fitness.state_dict())


def test_a_run_keeps_its_budget_and_resumes_exactly(tmp_path, monkeypatch):
    optimizer = {"name": "cma-es", "population": 6, "sigma": 2.0, "options": {"mean_rate": 0.5}}
    changes = {"optimizer": optimizer, "run__generations": 6}
    free = run_quickly(write_quick_run(tmp_path / "free", **changes), monkeypatch)
    recorder = Recorder()
    bound = {**changes, "fitness__kl_budget": 0.02}
    kept = run_quickly(write_quick_run(tmp_path / "kept", **bound), monkeypatch, reporter=recorder)
    assert recorder.rows[-1]["mean_norm"] < 0.5 * _last(free)["mean_norm"]
    assert recorder.rows[1]["beyond_kl_budget"] > 0.5
    config = write_quick_run(tmp_path / "cut", **bound)
    with pytest.raises(KeyboardInterrupt):
        run_quickly(config, monkeypatch, reporter=Recorder(fail_after=3))
    resumed = run_quickly(config, monkeypatch, resume=True)
    assert reproducible(resumed.folder) == reproducible(kept.folder)


def _last(outcome):
    from esalign.files import read_json_lines

    return list(read_json_lines(outcome.folder / "metrics.jsonl"))[-1]
