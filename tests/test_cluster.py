"""Many real engines as one, over Ray in this machine: the same results, whoever dies, sleeps or joins."""

import os
import random
import re
import signal
import threading
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from esalign_torch import TorchBackend
from models import make_tiny
from processes import MARK, marked, shared_memory, wait_until

from esalign import load_backend
from esalign.assets import adapter_path, model_path
from esalign.config.cluster import ClusterSection
from esalign.config.sections import BackendSection, Source
from esalign.data import load_dataset
from esalign.engines.cluster.backend import ClusterBackend
from esalign.engines.cluster.engine import Kind
from esalign.engines.cluster.make import make_cluster
from esalign.engines.cluster.ray_workers import connect
from esalign.errors import BackendError, EsalignWarning
from esalign.space import SvdLora
from esalign.testing import BACKEND_CLAIMS, Subject
from esalign.types import Sampling

ray = pytest.importorskip("ray")

GAME = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}
SOURCE = Source(source="reasoning-gym:countdown", options=GAME)
PROMPTS = [example.prompt for example in load_dataset(SOURCE, size=30, seed=0).examples]
DRAWN = Sampling(max_tokens=48, temperature=1.0, seed=3)
CPUS = 0.2  # of each worker, as there are more of them than cores


FAULTY = '''"""Engines that go wrong, each in its own way; a plug-in, which workers find in their path."""

import os
import sys
from pathlib import Path

from esalign_torch import TorchBackend


class Liar(TorchBackend):
    """Scores as it should, but leaves out a candidate when it completes."""

    def generate(self, candidates, prompts, sampling, on_completion=None):
        return super().generate(candidates, prompts, sampling)[1:]


class Outdated(TorchBackend):
    """Has another esalign beside it."""

    def __init__(self, *arguments, **options):
        sys.path.insert(0, str(Path(__file__).with_name("outdated")))
        super().__init__(*arguments, **options)


class Mortal(TorchBackend):
    """Dies at start."""

    def __init__(self, *arguments, **options):
        os._exit(1)
'''
FAULTS = {"liar": "faulty:Liar", "outdated": "faulty:Outdated", "mortal": "faulty:Mortal"}


def write_plugin(folder):
    """Write the faulty engines as an installed distribution, and beside it one that says it is an old esalign."""
    entry_points = "".join(f"{name} = {value}\n" for name, value in FAULTS.items())
    files = {
        "faulty.py": FAULTY,
        "faulty-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: faulty\nVersion: 1\n",
        "faulty-1.dist-info/entry_points.txt": f"[esalign.backends]\n{entry_points}",
        "outdated/esalign-0.0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: esalign\nVersion: 0.0.1\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder in which the faulty engines are installed."""
    folder = tmp_path_factory.mktemp("plugin")
    write_plugin(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def clean_machine(plugin):
    """One Ray for the module; afterwards no process and no shared memory of it is left."""
    mark, before = uuid.uuid4().hex, shared_memory()
    os.environ[MARK] = mark
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugin), prepend=os.pathsep)
        connect("local", 0)
    yield
    ray.shutdown()
    del os.environ[MARK]
    assert wait_until(lambda: not set(marked(mark)) - {os.getpid()}), marked(mark)
    assert shared_memory() <= before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def space():
    return SvdLora.from_pretrained(adapter_path("embedded"))


@pytest.fixture(scope="module")
def candidates(space):
    return np.random.default_rng(0).standard_normal((6, space.dim)) * 0.3


def cluster_of(space, workers, backend=None, **options):
    cpus = {} if "groups" in options else {"cpus": CPUS}
    section = ClusterSection(**{"workers": workers, "unit": 6, **cpus, **options})
    return make_cluster(backend or BackendSection(dtype="float32"), model_path("embedded"), space, section)


@pytest.fixture(scope="module")
def three(space):
    cluster = cluster_of(space, 3, cut_for=3)
    bring_up(cluster, 3)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def undisturbed(three, candidates):
    return three.generate(candidates, PROMPTS, DRAWN)


def pids(cluster):
    return [cluster._workers.hellos[number].pid for number in cluster._scheduler.ready]


def bring_up(cluster, workers):
    """Wait until there are so many workers, neither more nor less."""
    scheduler = cluster._scheduler
    scheduler.resize(workers)
    deadline = time.monotonic() + 600
    while len(scheduler.ready) != workers or any(worker.state == "busy" for worker in scheduler.members.values()):
        scheduler._revive()
        scheduler._listen(None)
        assert time.monotonic() < deadline


def count_differing(rows, others):
    return sum(a != b for row, other in zip(rows, others, strict=True) for a, b in zip(row, other, strict=True))


# --- the contract ---


@pytest.fixture(scope="module")
def subject(tiny):
    space = SvdLora.from_pretrained(tiny.adapter)
    kinds = [Kind("torch", str(tiny.model), "float32", "cpu", gpus=0, cpus=CPUS)] * 2
    subject = Subject(
        lambda: ClusterBackend(kinds, space, ClusterSection(workers=2, unit=4)), model=tiny.model, space=space
    )
    yield subject
    subject.backend.close()


@pytest.mark.parametrize("claim", BACKEND_CLAIMS, ids=lambda claim: claim.__name__)
def test_a_cluster_holds_the_contract_of_engines(subject, claim):
    claim(subject)


# --- the same results ---


def test_any_number_of_workers_completes_and_scores_as_one_engine_does(three, space, candidates, undisturbed):
    """Equal to the bit among clusters that cut alike; alone, the engine batches otherwise, which can tip near ties."""
    alone = load_backend("torch", model=model_path("embedded"), space=space, dtype="float32", device="cpu")
    expected = alone.generate(candidates, PROMPTS, DRAWN)
    assert len({one.token_ids for row in expected for one in row}) > 30
    assert count_differing(expected, undisturbed) <= 0.01 * len(candidates) * len(PROMPTS)
    sequences = [(three.encode(prompt), one.token_ids) for prompt, one in zip(PROMPTS, expected[0], strict=True)]
    meant, got = alone.score(candidates[:2], sequences), three.score(candidates[:2], sequences)
    for row, other in zip(meant, got, strict=True):
        for a, b in zip(row, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    alone.close()
    for workers in (2, 1):
        bring_up(three, workers)
        assert three.generate(candidates, PROMPTS, DRAWN) == undisturbed


def test_repeated_prompts_draw_as_in_one_engine(three, space, candidates):
    alone = load_backend("torch", model=model_path("embedded"), space=space, dtype="float32", device="cpu")
    prompts = [PROMPTS[0]] * 20 + [PROMPTS[1]] * 20
    expected = alone.generate(candidates[:2], prompts, DRAWN)
    assert len({one.token_ids for one in expected[0][:20]}) > 3
    assert count_differing(expected, three.generate(candidates[:2], prompts, DRAWN)) <= 1
    alone.close()


# --- workers that fail ---


def test_killed_workers_change_nothing(three, candidates, undisturbed):
    """A few of them here; examples/benchmarks/cluster_kills.py does it fifty times."""
    bring_up(three, 2)
    began, chance = time.monotonic(), random.Random(0)
    three.generate(candidates, PROMPTS, DRAWN)
    seconds, lost = time.monotonic() - began, three.measure()["lost"]
    killed = []

    def kill_one():
        alive = [pid for pid in pids(three) if Path(f"/proc/{pid}").exists() and pid not in killed]
        if alive:
            killed.append(chance.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)

    for kill in range(3):
        timer = threading.Timer(chance.random() * seconds, kill_one)
        timer.start()
        assert three.generate(candidates, PROMPTS, DRAWN) == undisturbed, f"kill {kill}"
        timer.join()
    bring_up(three, 2)
    assert killed
    assert three.measure()["lost"] >= lost + len(killed) - 1  # the last one may have been idle, and is found out later


def test_a_worker_that_sleeps_for_ever_is_worked_around_and_ended(three, candidates, undisturbed):
    bring_up(three, 2)
    asleep = pids(three)[0]
    os.kill(asleep, signal.SIGSTOP)
    assert three.generate(candidates, PROMPTS, DRAWN) == undisturbed
    three._scheduler._limit = 0.5
    with pytest.warns(EsalignWarning, match=r"made anew: .* no answer within 0 s"):
        bring_up_after_hang(three)
    three._scheduler._limit = 1800.0
    assert wait_until(lambda: not Path(f"/proc/{asleep}").exists()), "the sleeper is still there"


def bring_up_after_hang(cluster):
    """The next call finds that a worker is asleep for longer than the limit."""
    time.sleep(1.0)
    cluster.encode(f"a prompt that is new {uuid.uuid4().hex}")


def test_workers_that_lie_are_outdated_or_die_at_start_change_nothing_and_are_told_of(
    space, candidates, plugin, monkeypatch
):
    monkeypatch.syspath_prepend(plugin)  # here too, as a cluster refuses an engine of no known name
    alone, few = TorchBackend(model_path("embedded"), space, device="cpu"), candidates[:2]
    groups = [{"workers": 1, "cpus": CPUS}, *({"workers": 1, "cpus": CPUS, "backend": name} for name in FAULTS)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cluster = cluster_of(space, "auto", groups=groups, min_workers=2)
        wait_for_gone(cluster, 2)
        cluster._scheduler._least = 1  # the liar is missing for a while
        rows = cluster.generate(few, PROMPTS, DRAWN)
    assert count_differing(rows, alone.generate(few, PROMPTS, DRAWN)) <= 1
    assert cluster.measure()["wrong"] >= 1
    cluster.close()
    alone.close()
    said = "\n".join(str(one.message) for one in told)
    for text in (
        r"worker 1 \(liar\) is made anew: it gave what is no answer: \d+ completions where \d+ were expected",
        r"worker 2 \(outdated\) is refused: it has esalign 0\.0\.1, worker \d .* has",
        r"worker 3 \(mortal\) is given up after 3 tries: ",
    ):
        assert re.search(text, said), said


def wait_for_gone(cluster, count):
    """Wait until so many workers are given up."""
    scheduler, deadline = cluster._scheduler, time.monotonic() + 600
    while sum(worker.state == "gone" for worker in scheduler.members.values()) < count:
        scheduler._revive()
        scheduler._listen(None)
        assert time.monotonic() < deadline


def test_a_worker_with_another_model_is_refused(space, tmp_path):
    tiny = make_tiny(tmp_path, seed=1)
    other = make_tiny(tmp_path / "other", seed=2)
    kinds = [Kind("torch", str(model), "float32", "cpu", gpus=0, cpus=CPUS) for model in (tiny.model, other.model)]
    space = SvdLora.from_pretrained(tiny.adapter)
    with pytest.warns(EsalignWarning, match="is refused: its log-probabilities of .* are off"):
        cluster = make_one_of(kinds, space)
    cluster.close()


def make_one_of(kinds, space):
    """Make a cluster of which one worker is refused."""
    cluster = ClusterBackend(kinds, space, ClusterSection(workers=2))
    scheduler = cluster._scheduler
    while not any(worker.state == "gone" for worker in scheduler.members.values()):
        scheduler._listen(None)
    assert len(scheduler.ready) == 1
    return cluster


def test_what_cannot_be_started_is_told_in_one_line(space):
    with pytest.raises(BackendError, match="model"):
        make_cluster(BackendSection(), "/nowhere", space, ClusterSection(workers=1, cpus=CPUS))
    with pytest.raises(BackendError, match=r"0 of at least 1 workers are ready; each needs 64 CPU.* machines with \d"):
        cluster_of(space, 1, cpus=64.0, wait=3.0)


def test_engines_of_two_kinds_in_one_run(space, candidates):
    """torch and llama.cpp, both in float32: greedy completions equal those of one kind, but for near ties."""
    pytest.importorskip("llama_cpp")
    few, greedy = candidates[:2], Sampling(max_tokens=32)
    groups = [
        {"workers": 1, "cpus": CPUS},
        {"workers": 1, "cpus": CPUS, "backend": {"name": "llama-cpp", "options": {"threads": 1}}},
    ]
    cluster = cluster_of(space, "auto", groups=groups, min_workers=2)
    alone = TorchBackend(model_path("embedded"), space, device="cpu")
    differing = count_differing(alone.generate(few, PROMPTS, greedy), cluster.generate(few, PROMPTS, greedy))
    cluster.close()
    assert differing <= 0.05 * 2 * len(PROMPTS)
