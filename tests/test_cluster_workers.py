"""What crosses between a run and its workers, and who may answer."""

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError
from quick_runs import write_quick_run
from runs import write_run

from esalign.commands.build import make_parts
from esalign.commands.evaluate import judge
from esalign.config.cluster import ClusterSection
from esalign.config.distill import DistillConfig
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.config.sections import BackendSection
from esalign.engines.cluster.admission import GRACE, Admission, Candidate, compare
from esalign.engines.cluster.backend import _check_scores
from esalign.engines.cluster.engine import Engine, Hello, Kind, Refused, _versions
from esalign.engines.cluster.lifeline import Lifeline
from esalign.engines.cluster.make import make_cluster
from esalign.engines.cluster.packing import blocks, open_block, pack, unpack
from esalign.engines.cluster.ray_workers import connect
from esalign.engines.cluster.units import BLOCK, Unit, cut
from esalign.engines.cluster.workers import Unfit, WrongAnswer
from esalign.errors import BackendError, ConfigError, MissingPackageError
from esalign.types import Completion


def answers():
    first = [Completion("ab", (1, 2, 3), "stop", -0.5), Completion("", (9,), "length", -0.25)]
    return [first, [Completion("c", (4,), "stop")] * 2]


def test_completions_come_back_as_they_were():
    unit = Unit((0, 0), range(3, 5), range(7, 9))
    found = unpack(pack(answers()), unit, 3)
    assert found == answers()
    assert [[one.logprob for one in row] for row in found] == [[-0.5, -0.25], [None, None]]


@pytest.mark.parametrize(
    "change",
    [
        lambda packed: "garbage",
        lambda packed: None,
        lambda packed: replace(packed, texts=packed.texts[:-1]),
        lambda packed: replace(packed, logprobs=packed.logprobs[:-1]),
        lambda packed: replace(packed, ids=packed.ids[:-1]),
        lambda packed: replace(packed, ends=packed.ends[::-1]),
        lambda packed: pack(answers()[:1]),
    ],
)
def test_what_can_be_no_completions_is_refused(change):
    unit = Unit((0, 0), range(2), range(2))
    with pytest.raises(WrongAnswer):
        unpack(change(pack(answers())), unit, 3)
    with pytest.raises(WrongAnswer, match="expected 1 to 2"):
        unpack(pack(answers()), unit, 2)


FIRST = Candidate(
    "worker 0 (torch)",
    Hello("torch", {"esalign": "0.1.0"}, "f", 256, ((1, 2), (3,)), np.full((2, 3), -1.0)),
    Kind("torch", "model", "float32"),
)


def changed(**change):
    return replace(FIRST, name="worker 1 (torch)", hello=replace(FIRST.hello, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"esalign": "0.0.9"}}, "esalign 0.0.9, worker 0 .torch. has 0.1.0"),
        ({"fingerprint": "other"}, "search space is another one"),
        ({"ids": ((1, 2), (4,))}, "encodes prompts in another way"),
        ({"scores": np.full((2, 3), -1.5)}, "off from those of worker 0 .torch. by 0.5 nats"),
        ({"scores": np.full((2, 3), np.nan)}, "off from those of worker 0"),
    ],
)
def test_a_worker_that_is_not_like_the_others_is_refused(change, said):
    assert compare(changed(scores=FIRST.hello.scores + 0.001), FIRST) is None
    assert re.search(rf"worker 1 .torch. is refused: .*{said}", str(compare(changed(**change), FIRST)))


def test_engines_in_lower_precision_may_differ_more():
    near = changed(scores=FIRST.hello.scores + 0.1)
    assert isinstance(compare(near, FIRST), Unfit)
    half = Kind("torch", "model", "bfloat16")
    assert compare(replace(near, kind=half), replace(FIRST, kind=half)) is None


def test_a_broken_worker_that_comes_first_is_outvoted():
    broken, admission = changed(scores=np.full((2, 3), -9.0)), Admission()
    admission.waiting["a"] = broken
    assert admission.judge(more=True, now=1.0) == {}
    admission.waiting["b"] = FIRST
    assert admission.judge(more=True, now=2.0) == {}
    admission.waiting["c"] = FIRST
    verdicts = admission.judge(more=True, now=3.0)
    assert isinstance(verdicts["a"], Unfit)
    assert (verdicts["b"], verdicts["c"]) == (None, None)
    admission.waiting["d"] = broken
    assert isinstance(admission.judge(more=False, now=4.0)["d"], Unfit)


@pytest.mark.parametrize(("more", "now"), [(False, 0.0), (True, GRACE)])
def test_a_worker_is_believed_where_no_other_is_to_come_or_came_in_time(more, now):
    admission = Admission(waiting={"a": FIRST})
    assert admission.judge(more=more, now=now) == {"a": None}


def test_scores_of_another_shape_or_type_are_no_answer():
    unit, lengths = Unit((0, 0), range(2), range(2)), [3, 1]
    rows = [[np.full(3, -1.0, np.float32), np.full((1, 2), -1.0)]] * 2
    _check_scores(unit, rows, lengths)
    for garbage in (None, "x", [1, 2], [[1, 2]] * 2, rows[:1], [row[::-1] for row in rows], [["abc", "d"]] * 2):
        with pytest.raises(WrongAnswer):
            _check_scores(unit, garbage, lengths)
    for wrong in (np.nan, 0.5):
        with pytest.raises(WrongAnswer, match="above 0 or no numbers"):
            _check_scores(unit, [[np.full(3, wrong), rows[0][1]]] * 2, lengths)


def test_a_sequence_that_is_refused_is_named_by_its_place_in_the_call():
    class Strict:
        def score(self, candidates, sequences, support):
            raise BackendError("the prompt of sequence 1 is empty")

    engine = Engine()
    engine._backend = Strict()
    assert engine.score(None, [], None, 40) == Refused("BackendError", "the prompt of sequence 41 is empty")


def test_prompts_are_sent_in_blocks_and_come_out_as_they_were():
    prompts = [tuple(range(j % 5 + 1)) for j in range(700)]
    packed = list(blocks(prompts))
    assert [len(ends) for _, ends in packed] == [256, 256, 188]
    for wanted in (range(700), range(300, 500), range(511, 513), range(512, 513)):
        unit = Unit((0, 0), range(1), wanted)
        held, places = unit.blocks, unit.places
        there = [one for block in packed[held.start : held.stop] for one in open_block(block)]
        assert there[places.start : places.stop] == prompts[wanted.start : wanted.stop]


def test_units_of_many_prompts_hold_whole_blocks_of_them():
    starts = {unit.prompts.start % BLOCK for unit in cut(100, 10_000, workers=128, fewest=256) if unit.size > 2 * BLOCK}
    assert starts == {0}


def test_a_process_ends_when_the_other_end_of_its_line_does():
    line = Lifeline("127.0.0.1")
    code = (
        f"from esalign.engines.cluster.lifeline import hold_on; hold_on({line.address}); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout.readline() == b"1\n"
        line.close()
        assert held.wait(10) == -signal.SIGKILL


def test_a_cluster_is_checked_when_the_configuration_is_read():
    with pytest.raises(ValidationError, match="never has min_workers"):
        ClusterSection(workers=2, min_workers=3)
    for workers in (0, "many", 2.5, True):
        with pytest.raises(
            ValidationError, match=r"1 validation error(.|\n)*auto or a whole number, at least 1 worker"
        ):
            ClusterSection(workers=workers)
    for gpus in (1.5, 0.00001):  # Ray would refuse them in a traceback
        with pytest.raises(ValidationError, match=r"a whole number of GPUs, or of one GPU a share of at least 0\.0001"):
            ClusterSection(gpus=gpus)
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.0001"):
        ClusterSection.model_validate({"groups": [{"workers": 1, "cpus": 0.00001}]})
    assert (ClusterSection(gpus=2.0).gpus, ClusterSection(gpus=0.5, cpus=1.5).cpus) == (2.0, 1.5)
    with pytest.raises(ValidationError, match="not both"):
        ClusterSection.model_validate({"groups": [{"workers": 2}], "workers": 2})
    grouped = ClusterSection.model_validate({"groups": [{"workers": 2, "backend": "llama-cpp"}, {"workers": 1}]})
    assert grouped.groups[0].backend.name == "llama-cpp"
    assert grouped.groups[1].backend is None
    assert ClusterSection.model_validate(grouped.model_dump()) == grouped


def test_scoring_on_a_cluster_needs_a_cluster_and_processes(tmp_path):
    with pytest.raises(ValidationError, match=r"there is no section cluster: add one, e\.g\. cluster\.workers=auto"):
        write_quick_run(tmp_path, scoring={"place": "cluster"})
    with pytest.raises(ValidationError, match=r"workers is 0, .* expected at least 1 on a cluster"):
        write_quick_run(tmp_path, scoring={"place": "cluster", "workers": 0}, cluster={})
    with pytest.raises(ValidationError, match=r"a distillation has none: set scoring\.place=run"):
        DistillConfig.model_validate(
            {
                "student": {"path": "a"},
                "teacher": {"path": "b"},
                "data": {"source": "c"},
                "scoring": {"place": "cluster"},
            }
        )


def test_engines_count_as_of_one_kind_if_only_their_cores_and_gpus_differ():
    kind = Kind("torch", "model", "float32")
    assert not kind.differs(replace(kind, cpus=4.0, gpus=2.0))
    assert kind.differs(replace(kind, device="cpu"))
    assert kind.differs(replace(kind, options={"quantization": "int8"}))


def test_versions_are_those_of_what_the_backend_says_it_computes_with():
    class Packaged:
        packages = ("numpy", "no-such-distribution")

    assert _versions("fake", Packaged()) == {name: importlib.metadata.version(name) for name in ("esalign", "numpy")}
    assert set(_versions("fake", object())) == {"esalign"}


def test_a_prompt_that_is_refused_is_named_by_its_place_in_the_list():
    class Strict:
        def encode(self, prompt):
            if not prompt:
                raise BackendError("the prompt is empty")
            return (1,)

    engine = Engine()
    engine._backend = Strict()
    assert engine.encode([(4, "a"), (7, "")]) == Refused("BackendError", "prompt 7 is empty")


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch):
    asked = []
    stub = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: asked.append(options["address"]),
        exceptions=SimpleNamespace(RayError=LookupError),
    )
    monkeypatch.setitem(sys.modules, "ray", stub)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        for address in ("auto", there, f"ray://{there}"):
            assert connect(address, 0)
    assert asked == ["auto", there, f"ray://{there}"]
    for address in (there, f"ray://{there}", "no-such-host.invalid:6379"):
        with pytest.raises(BackendError, match=f"no Ray cluster at '{address}'"):
            connect(address, 0)
    assert len(asked) == 3


def test_a_cluster_that_lets_nobody_in_may_want_a_token(monkeypatch):
    def refuse(**_options):
        raise ConnectionError("Failed to connect to Ray cluster")

    stub = SimpleNamespace(is_initialized=lambda: False, init=refuse)
    monkeypatch.setitem(sys.modules, "ray", stub)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BackendError, match="asks for a token, set RAY_AUTH_MODE=token"):
            connect(there, 0)
    with pytest.raises(BackendError) as nobody:
        connect(there, 0)
    assert "token" not in str(nobody.value)


def test_an_engine_of_no_known_name_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    section = ClusterSection(groups=[{"workers": 1}, {"workers": 1, "backend": "tirch"}])
    with pytest.raises(ConfigError, match="unknown backend 'tirch', did you mean 'torch'"):
        make_cluster(BackendSection(name="torch"), "model", None, section)


def test_a_run_refuses_an_engine_of_no_known_name_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    file = write_run(tmp_path, cluster={"groups": [{"workers": 1, "backend": "tirch"}]})
    config = load_config([str(file)], [], schema=RunConfig)
    with ExitStack() as closing, pytest.raises(ConfigError, match="unknown backend 'tirch', did you mean 'torch'"):
        make_parts(config, closing)
    with pytest.raises(ConfigError, match="unknown backend 'tirch', did you mean 'torch'"):
        judge(config, start=config.model.adapter)


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'pip install "esalign\[ray\]"'):
        connect("local", 0)


def test_the_slurm_script_starts_ray_on_all_nodes_and_the_run_on_the_first(tmp_path):
    """Its body runs as it stands on the page; what Slurm and a cluster would do is written down instead."""
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
    script = page.partition("## Slurm")[2].partition("```bash\n")[2].partition("```")[0]
    (tmp_path / "job.sh").write_text(script)
    stubs = {
        "srun": f'echo "$@" >> {tmp_path}/calls',
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "sleep": "exec /bin/sleep 0.1",
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    there = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_NNODES": "3"}
    subprocess.run(["bash", tmp_path / "job.sh", "--resume"], env=there, check=True)
    calls = sorted((tmp_path / "calls").read_text().splitlines(), key=lambda call: ("run my-run" in call, call))
    assert calls[0] == "--nodes=1 --ntasks=1 -w n1 ray start --head --port=6379 --block"
    assert calls[1] == "--nodes=2 --ntasks=2 --exclude=n1 ray start --address=n1:6379 --block"
    assert calls[2].startswith("--overlap --nodes=1 --ntasks=1 -w n1 esalign run my-run.yaml cluster.address=auto ")
    assert calls[2].endswith(" --resume")
    assert len(calls) == 3
