"""Kill workers of a real cluster (SIGKILL) at random moments of a generation, and compare with the undisturbed one.

python examples/benchmarks/cluster_kills.py --kills 50
python examples/benchmarks/cluster_kills.py --kills 50 --backend fake    # engines that load at once: minutes, not hours
"""

import argparse
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from cluster import problems

from esalign.assets import adapter_path, model_path
from esalign.config.cluster import ClusterSection
from esalign.config.sections import BackendSection
from esalign.engines.cluster.make import make_cluster
from esalign.space import SvdLora
from esalign.types import Sampling


def fitness(rows: Any) -> list[float]:
    """Return a number for each candidate that depends on every completion: its mean length and number of digits."""
    return [float(np.mean([len(one.token_ids) + sum(map(str.isdigit, one.text)) for one in row])) for row in rows]


def main(backend: str, kills: int, workers: int, prompts: int) -> int:
    """Return the number of generations that differ."""
    space = SvdLora.from_pretrained(adapter_path("embedded"))
    asked = problems(prompts)
    vectors = np.random.default_rng(0).standard_normal((12, space.dim)) * 0.3
    section = ClusterSection(workers=workers, min_workers=1, cpus=0.5, unit=16, address="local", cut_for=workers)
    cluster = make_cluster(BackendSection(name=backend, dtype="float32"), model_path("embedded"), space, section)
    sampling = Sampling(max_tokens=80, temperature=1.0, seed=1)
    cluster.generate(vectors, asked, sampling)  # by when all workers may have come
    began = time.monotonic()
    expected = cluster.generate(vectors, asked, sampling)
    seconds, chance, different, longest = time.monotonic() - began, random.Random(0), 0, 0.0
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    killed, generations = set[int](), 0
    while len(killed) < kills:
        timer = threading.Timer(chance.random() * seconds, kill_one, (cluster, chance, killed))
        timer.start()
        began = time.monotonic()
        rows = cluster.generate(vectors, asked, sampling)
        longest = max(longest, time.monotonic() - began)
        timer.join()
        generations += 1
        different += rows != expected or fitness(rows) != fitness(expected)
        if generations % 10 == 0:
            print(
                f"{len(killed)} kills in {generations} generations: {different} differ, longest {longest:.1f} s",
                flush=True,
            )
    told = cluster.measure()
    cluster.close()
    print(f"{len(killed)} kills in {generations} generations, longest {longest:.1f} s: {different} differ")
    print({key: told[key] for key in ("lost", "redone", "doubled", "late", "units")})
    return different


def kill_one(cluster: Any, chance: random.Random, killed: set[int]) -> None:
    """Kill a worker that is ready, as far as is known, and note its process."""
    ready = [cluster._workers.hellos[number].pid for number in cluster._scheduler.ready]  # noqa: SLF001
    alive = [pid for pid in ready if pid not in killed and Path(f"/proc/{pid}").exists()]
    if alive:
        victim = chance.choice(alive)
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=60)
    given = parser.parse_args()
    raise SystemExit(main(given.backend, given.kills, given.workers, given.prompts) > 0)
