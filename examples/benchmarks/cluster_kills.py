"""Kill workers of a real cluster (SIGKILL) at random moments of a generation, and compare with the undisturbed one.

python examples/benchmarks/cluster_kills.py --kills 50
"""

import argparse
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np

from esalign.assets import adapter_path, model_path
from esalign.config.cluster import ClusterSection
from esalign.config.sections import BackendSection, Source
from esalign.data import load_dataset
from esalign.engines.cluster.make import make_cluster
from esalign.space import SvdLora
from esalign.types import Sampling

GAME = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}


def fitness(rows: Any) -> list[float]:
    """Return a number for each candidate that depends on every completion: its mean length and number of digits."""
    return [float(np.mean([len(one.token_ids) + sum(map(str.isdigit, one.text)) for one in row])) for row in rows]


def main(kills: int, workers: int, prompts: int) -> int:
    """Return the number of runs that differ."""
    space = SvdLora.from_pretrained(adapter_path("embedded"))
    source = Source(source="reasoning-gym:countdown", options=GAME)
    asked = [example.prompt for example in load_dataset(source, size=prompts, seed=0).examples]
    vectors = np.random.default_rng(0).standard_normal((12, space.dim)) * 0.3
    section = ClusterSection(workers=workers, min_workers=1, cpus=0.5, unit=16, address="local", cut_for=workers)
    cluster = make_cluster(BackendSection(dtype="float32"), model_path("embedded"), space, section)
    sampling = Sampling(max_tokens=80, temperature=1.0, seed=1)
    began = time.monotonic()
    expected = cluster.generate(vectors, asked, sampling)
    seconds, chance, different, hits = time.monotonic() - began, random.Random(0), 0, 0
    for number in range(1, kills + 1):
        timer = threading.Timer(chance.random() * seconds, kill_one, (cluster, chance))
        timer.start()
        began = time.monotonic()
        rows = cluster.generate(vectors, asked, sampling)
        took = time.monotonic() - began
        timer.join()
        different += rows != expected or fitness(rows) != fitness(expected)
        hits += 1
        if number % 10 == 0 or took > 60:
            print(f"{number} kills: {different} runs differ; the last took {took:.1f} s", flush=True)
    told = cluster.measure()
    cluster.close()
    print(f"{hits} kills, {different} runs with other completions or fitness; undisturbed: {seconds:.1f} s")
    print({key: told[key] for key in ("lost", "redone", "doubled", "late", "units")})
    return different


def kill_one(cluster: Any, chance: random.Random) -> None:
    """Kill a worker that is ready, as far as is known."""
    ready = [cluster._workers.hellos[number].pid for number in cluster._scheduler.ready]  # noqa: SLF001
    if ready:
        try:
            os.kill(chance.choice(ready), signal.SIGKILL)
        except ProcessLookupError:
            print("it was dead already")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=60)
    given = parser.parse_args()
    raise SystemExit(main(given.kills, given.workers, given.prompts) > 0)
