"""Several machines, simulated in this one by Ray: engines and rewards on all of them, machines that go and come."""

import functools
import os
import shutil
import signal
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from processes import MARK, marked, shared_memory, wait_until
from quick_runs import Recorder, run_quickly, write_quick_run
from runs import reproducible

from esalign.commands.build import make_pool
from esalign.config.cluster import ClusterSection
from esalign.config.sections import BackendSection, RewardSection, ScoringSection
from esalign.engines.cluster import scoring
from esalign.engines.cluster.make import make_cluster
from esalign.errors import EsalignWarning, RewardError
from esalign.testing import FakeBackend
from esalign.types import Example, Sampling

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow

STORE = 100_000_000  # bytes, of each machine
ON_ALL = ClusterSection(workers="auto", cpus=2, unit=8, cut_for=3)  # an engine takes a machine
DRAWN = Sampling(max_tokens=40, temperature=1.0, seed=3)
PROMPTS = [f"What is {j} + {j * j}?" for j in range(200)]
VECTORS = np.zeros((6, 0))


@pytest.fixture(scope="module")
def nodes():
    """A head without cores, as in Kubernetes, and two machines; afterwards nothing is left of them."""
    mark, before = uuid.uuid4().hex, shared_memory()
    os.environ |= {MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        add_node(cluster)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del os.environ[MARK]
    assert wait_until(lambda: not set(marked(mark)) - {os.getpid()}), commands_of(set(marked(mark)) - {os.getpid()})
    assert shared_memory() <= before


def add_node(cluster, **settings):
    return cluster.add_node(num_cpus=2, object_store_memory=STORE, **settings)


def commands_of(processes):
    return [Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")[:200] for number in processes]


def parent(process):
    """Return the process that started one: of an actor, its machine's."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def machines_of(backend):
    """Return the machines on which a cluster's engines are."""
    return {parent(backend._workers.hellos[number].pid) for number in backend._scheduler.ready}


def generate_until(backend, machines, expected):
    """Generate until engines are on so many machines, each time with the same completions."""
    deadline = time.monotonic() + 300
    while len(machines_of(backend)) != machines:
        assert time.monotonic() < deadline, backend._workers.situation()
        assert backend.generate(VECTORS, PROMPTS, DRAWN) == expected


def test_a_machine_that_is_lost_costs_nothing_and_one_that_joins_is_used(nodes):
    expected = FakeBackend("any").generate(VECTORS, PROMPTS, DRAWN)
    backend = make_cluster(BackendSection(name="fake"), "any", None, ON_ALL)
    generate_until(backend, 2, expected)
    began = time.monotonic()
    assert backend.generate(VECTORS, PROMPTS, DRAWN) == expected
    seconds, lost = time.monotonic() - began, backend.measure()["lost"]
    lose = functools.partial(nodes.remove_node, next(iter(nodes.worker_nodes)), allow_graceful=False)
    timer = threading.Timer(0.3 * seconds, lose)
    timer.start()
    assert backend.generate(VECTORS, PROMPTS, DRAWN) == expected
    timer.join()
    deadline = time.monotonic() + 300
    while backend.measure()["lost"] == lost:  # a fast machine may be through before the other one is down
        assert time.monotonic() < deadline
        assert backend.generate(VECTORS, PROMPTS, DRAWN) == expected
    assert backend.measure()["workers"] == 1
    for _ in range(2):
        add_node(nodes)
    generate_until(backend, 3, expected)
    backend.close()


# --- rewards ---

HELPER = "import math\n\n\ndef curve(text):\n    return math.sin(len(text)) / 3\n"
REWARD = """import functools

from near import curve


@functools.cache
def known(text):
    return curve(text)


def judge(completions):
    return [known(text) for text in completions]
"""
FUNCTIONS = Path(__file__).with_name("reward_functions.py")
COMPLETIONS = ["hang", "raise", "die", "nan", "abstain", "exit", *(str(number * 37 % 101) for number in range(400))]
EXAMPLES = [Example(f"problem {number}") for number in range(len(COMPLETIONS))]


def write_rewards(folder):
    """Write files of rewards that nobody else has, and return how a configuration names them."""
    (folder / "near.py").write_text(HELPER)
    (folder / "own.py").write_text(REWARD)
    shutil.copy(FUNCTIONS, folder / "odd.py")
    return [
        RewardSection(name=f"{folder / 'own.py'}:judge", weight=0.3),
        RewardSection(name=f"{folder / 'odd.py'}:misbehaving"),
        RewardSection(name=f"{folder / 'odd.py'}:Judge", options={"scale": 0.1}),
    ]


def actors():
    """Return the processes of this test that score for others."""
    found = []
    for process in marked(os.environ[MARK]):
        try:
            command = Path(f"/proc/{process}/cmdline").read_text()
        except OSError:
            continue
        if command.startswith("ray::Actor"):
            found.append(process)
    return found


@pytest.fixture
def pool(nodes, tmp_path):
    """Four processes on all machines, the files of whose rewards are gone."""
    code = tmp_path / "code"
    code.mkdir()
    rewards = write_rewards(code)
    with make_pool(rewards, ScoringSection(place="cluster", workers=4, timeout=2.0), ON_ALL) as made:
        shutil.rmtree(code)
        yield made


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    with make_pool(write_rewards(tmp_path_factory.mktemp("home")), ScoringSection(workers=2, timeout=2.0)) as made:
        return made.score(EXAMPLES, COMPLETIONS)


def test_rewards_whose_files_are_gone_score_on_all_machines_as_at_home(pool, at_home):
    assert pool.score(EXAMPLES, COMPLETIONS) == at_home
    assert at_home.errors == {"misbehaving/error": 4, "misbehaving/timeout": 1}
    assert len({parent(process) for process in actors()}) == len(nodes_with_cores())


def nodes_with_cores():
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def score_until_all_do(pool, expected):
    """Score until every machine's actor has answered: for one that is put to sleep before, the pool waits minutes."""
    deadline = time.monotonic() + 120
    while pool.score(EXAMPLES, COMPLETIONS) != expected or len(actors()) != len(nodes_with_cores()):
        assert time.monotonic() < deadline, commands_of(actors())


def score_while_harmed(pool, expected, harm):
    timer = threading.Timer(1.0, lambda: [os.kill(one, harm) for one in actors()])  # a completion hangs for 2 s
    timer.start()
    assert pool.score(EXAMPLES, COMPLETIONS) == expected, harm
    timer.join()
    score_until_all_do(pool, expected)


def test_scoring_actors_that_are_killed_or_sleep_cost_nothing(pool, at_home, monkeypatch):
    score_until_all_do(pool, at_home)
    monkeypatch.setattr(scoring, "SILENCE", 2.0)
    for harm in (signal.SIGKILL, signal.SIGSTOP):
        with pytest.warns(EsalignWarning, match="scoring processes of a machine were lost, and are made anew"):
            score_while_harmed(pool, at_home, harm)


def test_a_reward_that_a_machine_cannot_load_ends_the_run_in_one_line(nodes, tmp_path):
    file = tmp_path / "local.py"
    file.write_text(f"import os\nassert os.path.exists('{file}')\n\ndef judge(completions):\n    return [1.0]\n")
    section = ScoringSection(place="cluster")
    with make_pool([RewardSection(name=f"{file}:judge")], section, ON_ALL) as made:
        file.unlink()
        with pytest.raises(
            RewardError, match=r"machine .*: reward 'esalign_reward_local:judge': its module fails: Asse"
        ):
            made.score(EXAMPLES, COMPLETIONS)


def test_a_machine_with_another_esalign_is_named(nodes, tmp_path):
    (tmp_path / "esalign-0.0.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: esalign\nVersion: 0.0.1\n"
    (tmp_path / "esalign-0.0.1.dist-info" / "METADATA").write_text(metadata)
    outdated = add_node(nodes, env_vars={"PYTHONPATH": str(tmp_path)})
    section = ScoringSection(place="cluster", workers=8)
    said = pytest.raises(RewardError, match=r"machine .* has esalign 0\.0\.1, this one .*: install the same version")
    with make_pool([RewardSection(name="exact-match")], section, ON_ALL) as made, said:
        for _ in range(600):  # the others may be done before it has come
            made.score([Example("p", {"answer": "1"})], ["1"])
            time.sleep(0.1)
    nodes.remove_node(outdated)


def test_a_run_goes_on_with_its_rewards_scored_on_the_cluster(nodes, tmp_path, monkeypatch, capfd):
    cluster = {"workers": 1, "unit": 8, "cut_for": 2}
    alone = write_quick_run(tmp_path, run__name="alone")
    stopped = write_quick_run(tmp_path, run__name="moved")
    moved = write_quick_run(tmp_path, run__name="moved", cluster=cluster, scoring={"place": "cluster", "workers": 2})
    run_quickly(alone, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_quickly(stopped, monkeypatch, reporter=Recorder(fail_after=3))
    run_quickly(moved, monkeypatch, resume=True)
    assert reproducible(tmp_path / "runs" / "moved") == reproducible(tmp_path / "runs" / "alone")
    assert not actors()
    assert "died" not in "".join(capfd.readouterr()), "Ray told of ends as of failures"
