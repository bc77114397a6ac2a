"""What a cluster costs: simulated workers by the hundred under the scheduler's own code, and a few real engines.

    python examples/benchmarks/cluster.py simulate            # efficiency with and without faults, driver, bytes
    python examples/benchmarks/cluster.py real --workers 1 2  # tokens per second of real engines on this machine
    python examples/benchmarks/cluster.py cost                # time to accuracy on 16 to 128 GPUs beside GRPO, a model

The simulation draws lengths of completions from those that the embedded model wrote on its own problems, scaled to a
mean of 300 tokens. A unit takes a worker ``0.05 s + 0.012 s x longest completion + tokens / 12,000``: a start, a step
per token while any sequence goes on, and a limit of throughput. These three numbers are assumptions of the size of one
modern GPU with a model of some billion weights. The column "of the ideal" compares with one such engine that does all
the work in batches of 1,024, divided by the number of workers. "At most" is what any scheduler could reach there: no
generation is shorter than its longest completion, which one worker writes alone, and slow workers do less.
"""

import argparse
import pickle
import time
import timeit
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esalign import load_backend
from esalign.assets import adapter_path, model_path
from esalign.config.cluster import ClusterSection
from esalign.config.sections import BackendSection, Source
from esalign.data import load_dataset
from esalign.engines.cluster.make import make_cluster
from esalign.engines.cluster.packing import pack, unpack
from esalign.engines.cluster.scheduler import Scheduler
from esalign.engines.cluster.units import BLOCK, Unit, cut
from esalign.engines.cluster.workers import WorkerLost
from esalign.protocols import Backend
from esalign.space import SvdLora
from esalign.testing.workers import SimulatedWorkers
from esalign.types import Completion, Sampling


@dataclass(frozen=True)
class Speed:
    """What a worker takes: seconds to start a unit, seconds a step, and tokens a second at most."""

    start: float = 0.05
    step: float = 0.012
    throughput: float = 12_000.0

    def seconds(self, longest: float, tokens: float, batches: float = 1.0) -> float:
        """Return the time for so many tokens, in batches whose longest completions are this long."""
        return batches * (self.start + self.step * longest) + tokens / self.throughput


MEAN_TOKENS = 300.0
LOADING = 45.0  # seconds until a worker that died is back
SLOWER = 10.0
DIM = 1792  # search vector of rank 8 on four layers of each of 28 blocks
PROMPT_TOKENS = 100
GAME = {"min_numbers": 3, "max_numbers": 3, "min_value": 1, "max_value": 12, "min_target": 1, "max_target": 99}


def problems(count: int) -> list[Any]:
    """Return prompts of the embedded model's task."""
    source = Source(source="reasoning-gym:countdown", options=GAME)
    return [example.prompt for example in load_dataset(source, size=count, seed=0).examples]


def measure_lengths() -> Any:
    """Return the lengths of completions that the embedded model writes, scaled to the mean of the simulation."""
    space = SvdLora.from_pretrained(adapter_path("embedded"))
    backend = load_backend("torch", model=model_path("embedded"), space=space, dtype="float32", device="cpu")
    sampling = Sampling(max_tokens=200, temperature=1.0)
    [row] = backend.generate(np.zeros((1, space.dim)), problems(400), sampling)
    lengths = np.array([len(one.token_ids) for one in row], dtype=float)
    print(f"measured lengths: mean {lengths.mean():.1f}, std {lengths.std():.1f}, longest {lengths.max():.0f} tokens")
    return lengths * MEAN_TOKENS / lengths.mean()


@dataclass
class World:
    """Simulated engines with their faults, and what they did."""

    lengths: Any  # (candidates, prompts)
    speed: Speed = Speed()
    slow: frozenset[int] = frozenset()
    deaths: list[float] = field(default_factory=list)
    busy: float = 0.0
    done: dict[tuple[int, int], float] = field(default_factory=dict)
    sent: set[tuple[int, int]] = field(default_factory=set)  # (worker, block of prompts that it was sent)
    own: float = 0.0

    def seconds(self, unit: Unit) -> float:
        """Return what an engine takes for a unit."""
        table = self.lengths[unit.candidates.start : unit.candidates.stop, unit.prompts.start : unit.prompts.stop]
        return self.speed.seconds(table.max(), table.sum())

    def answer(self, worker: int, unit: Unit, now: float) -> tuple[float, Any]:
        """Return when a worker answers, and what."""
        began = time.process_time()
        seconds = self.seconds(unit) * (SLOWER if worker in self.slow else 1.0)
        self.sent |= {(worker, block) for block in unit.blocks}
        due = [at for at in self.deaths if at <= now + seconds]
        if due:  # a death hits whoever is at work
            self.deaths.remove(due[0])
            outcome = max(0.01, due[0] - now), WorkerLost("preempted")
        else:
            outcome = seconds, seconds
        self.busy += outcome[0]
        self.own += time.process_time() - began
        return outcome


def simulate(
    lengths: Any,
    *,
    workers: int,
    candidates: int,
    prompts: int,
    fewest: int,
    stragglers: float = 0.0,
    deaths: int = 0,
    generations: int = 6,
    seed: int = 0,
    speed: Speed = Speed(),
) -> dict[str, float]:
    """Run generations. Returns the means of the later ones, by which time workers' speeds are known."""
    rng, rows = np.random.default_rng(seed), []
    slow = frozenset(rng.choice(workers, round(stragglers * workers), replace=False).tolist())
    world = World(np.zeros((0, 0)), speed, slow)
    crew = SimulatedWorkers(world.answer, lambda _worker, now: (LOADING if now else 0.0, None))
    scheduler = Scheduler(crew, workers, warn=lambda _text: None)
    usual = 1.0
    for generation in range(generations):
        world.lengths = rng.choice(lengths, (candidates, prompts))
        world.busy, world.own, world.sent = 0.0, 0.0, set()
        began, clock = time.process_time(), crew.clock()
        world.deaths = sorted(clock + rng.random(deaths) * usual)
        units, useful = cut(candidates, prompts, workers=workers, fewest=fewest, call=generation), []
        scheduler.run(units, lambda _unit, seconds, useful=useful: useful.append(seconds) or 1)
        driver, wall = time.process_time() - began - world.own, crew.clock() - clock
        usual = wall
        top = world.lengths.max()
        alone = speed.seconds(top, world.lengths.sum(), world.lengths.size / 1024)
        longest = speed.seconds(top, top)
        most = min(alone / workers / longest, 1 - stragglers * (1 - 1 / SLOWER))
        shares = np.array([world.busy, sum(useful), alone]) / workers / wall
        rows.append((wall, *shares, most, driver))
    wall, busy, useful, against, most, driver = np.mean(rows[2:], axis=0)
    return {
        "wall": wall,
        "busy": min(busy, 1.0),  # doubles that outlast the generation are counted at once
        "useful": useful,
        "against": against,
        "most": most,
        "driver": driver,
        "units": len(units),
        "bytes": sent(units, len(world.sent), min(prompts, BLOCK)) / workers,
    }


def sent(units: list[Unit], blocks: int, block: int) -> int:
    """Return the bytes of a generation's requests, and of so many blocks of prompts."""
    vector = np.random.default_rng(0).standard_normal((1, DIM))
    few = [len(pickle.dumps(("generate", np.repeat(vector, count, 0), range(1), Sampling()))) for count in (1, 2)]
    rows = sum(len(unit.candidates) for unit in units)
    return len(units) * (2 * few[0] - few[1]) + rows * (few[1] - few[0]) + 4 * PROMPT_TOKENS * block * blocks


def receive(count: int) -> tuple[float, float]:
    """Return the driver's seconds for so many completions that arrive, the least of five tries, and their bytes."""
    rng, unit = np.random.default_rng(0), Unit((0, 0), range(1), range(200))
    ids = [tuple(rng.integers(0, 50_000, int(MEAN_TOKENS)).tolist()) for _ in range(200)]
    packed = pickle.dumps(pack([[Completion(f"{one[0]:6} " * 171, one, "stop") for one in ids]]))
    tries = timeit.repeat(lambda: unpack(pickle.loads(packed), unit, 1000), number=20, timer=time.process_time)
    return min(tries) / 4000 * count, len(packed) / 200 * count


def run_simulation() -> None:
    """Print the table."""
    lengths = measure_lengths()
    columns = (
        "workers, candidates x prompts, unit, faults, wall, busy, useful, of the ideal, at most, scheduler, driver"
    )
    print("\n| " + " | ".join(columns.split(", ")) + " | units | to a worker |")
    print("|---" * 13 + "|")
    faults = (("none", {}), ("5 % ten times slower, 2 deaths", {"stragglers": 0.05, "deaths": 2}))
    sizes = (
        (128, 1000, 1000, 256),
        (128, 1000, 1000, 32),
        (128, 512, 1000, 256),
        (128, 100, 10_000, 256),
        (128, 256, 256, 256),
        (128, 256, 256, 32),
        (128, 100, 100, 256),
        (128, 100, 100, 32),
        (16, 100, 256, 256),
    )
    for workers, candidates, prompts, fewest in sizes:
        for name, options in faults:
            row = simulate(lengths, workers=workers, candidates=candidates, prompts=prompts, fewest=fewest, **options)
            own, driver = row["driver"], row["driver"] + receive(candidates * prompts)[0]
            print(
                f"| {workers} | {candidates} x {prompts} | {fewest} | {name} | {row['wall']:.0f} s | "
                f"{row['busy']:.3f} | {row['useful']:.3f} | {row['against']:.2f} | {row['most']:.2f} | "
                f"{own / row['wall']:.2%} | {driver / row['wall']:.1%} | {row['units']} | "
                f"{row['bytes'] / 1e6:.2f} MB |",
                flush=True,
            )
    seconds, size = receive(1)
    print(f"\na completion that comes back takes {size:,.0f} bytes and {1e6 * seconds:.0f} us of the driver")


# --- time to accuracy on many GPUs: arithmetic with measured parts, for Qwen2.5-32B in bfloat16 on H100 SXM ---

GENERATIONS, CANDIDATES, PROBLEMS = 10, 24, 96  # plain ESSA to 90 % of the best gain, 559,000 tokens: comparison.md
STEPS, ROLLOUTS = 27, 128  # GRPO to the same; answers a step: comparison.md, "Where the lines cross"
TRAINED = 103 / 72  # tokens that GRPO trains on, prompts too, for each that it generates: the same place
BACKWARD = 3.0  # a token trained on costs three forward passes (one forward, and twice that backward): the same place
DEAR = 5.0  # a generated token is as dear as so many that are read: between the columns of the same place
WEIGHTS = 32.5e9  # the model's
GPUS_PER_WORKER = 2  # 66 GB of weights take two GPUs of 80 GB: docs/paper.md
FLOPS, MEMORY = 989e12, 3.35e12  # a GPU's a second in bfloat16, dense, and bytes a second: NVIDIA's data sheet
USED, READ = 0.4, 0.6  # share of both that programs reach: assumed
NETWORK = 50e9  # bytes a second between machines, 400 Gb/s: assumed
PAPER = {16: (200, 400), 128: (20, 150)}  # minutes of ESSA and GRPO to 0.835 on PRM800K: arXiv 2507.04453


def run_cost() -> None:
    """Print the minutes of both on 16 to 128 GPUs, and what GRPO's are made of."""
    lengths = measure_lengths()
    reading = 2 * WEIGHTS / (USED * FLOPS * GPUS_PER_WORKER)  # seconds of a worker for a token that is read
    step = 2 * WEIGHTS / (READ * MEMORY * GPUS_PER_WORKER)  # all weights, two bytes each
    speed = Speed(step=step, throughput=1 / (DEAR * reading))
    trained = STEPS * ROLLOUTS * MEAN_TOKENS * TRAINED * BACKWARD * reading
    # Each step, gradients are summed over all machines (sent twice) and the engines get the new weights.
    synchronising = STEPS * 3 * 2 * WEIGHTS / NETWORK
    print(f"a worker: {1e3 * step:.0f} ms a step, {speed.throughput:,.0f} tokens/s at most, {1 / reading:,.0f} read")
    columns = "GPUs, ESSA, GRPO, its rollouts, back-propagation, synchronisation, ratio, paper"
    print("\n| " + " | ".join(columns.split(", ")) + " |\n" + "|---" * 8 + "|")
    for gpus in (16, 32, 64, 128):
        workers = gpus // GPUS_PER_WORKER
        shape = {"workers": workers, "fewest": 256, "speed": speed}
        essa = GENERATIONS * simulate(lengths, candidates=CANDIDATES, prompts=PROBLEMS, **shape)["wall"]
        rollouts = STEPS * simulate(lengths, candidates=1, prompts=ROLLOUTS, **shape)["wall"]
        parts = (rollouts, trained / workers, synchronising)
        minutes = [f"{seconds / 60:.1f}" for seconds in (essa, sum(parts), *parts)]
        paper = "{} against {}".format(*PAPER[gpus]) if gpus in PAPER else ""
        print(f"| {gpus} | {' | '.join(minutes)} | {sum(parts) / essa:.1f} | {paper} |", flush=True)


def run_real(counts: list[int], backend: str, candidates: int, prompts: int) -> None:
    """Print tokens per second of one engine and of clusters."""
    space = SvdLora.from_pretrained(adapter_path("embedded"))
    model, vectors = model_path("embedded"), np.random.default_rng(0).standard_normal((candidates, space.dim)) * 0.3
    sampling, asked = Sampling(max_tokens=80, temperature=1.0), problems(prompts)
    options: dict[str, Any] = {"threads": 1} if backend != "vllm" else {}
    section = BackendSection(name=backend, dtype="float32", device="cpu", options=options)
    engine = load_backend(backend, model=model, space=space, dtype="float32", device="cpu", **options)
    print(f"{backend}: {speed(engine, vectors, asked, sampling):,.0f} tokens/s by one engine alone, one thread")
    engine.close()
    for count in counts:
        cluster = make_cluster(section, model, space, ClusterSection(workers=count, min_workers=count, address="local"))
        measured = speed(cluster, vectors, asked, sampling)
        print(f"{backend}: {measured:,.0f} tokens/s by a cluster of {count}")
        cluster.close()


def speed(engine: Backend, vectors: Any, asked: list[Any], sampling: Sampling) -> float:
    """Return the best tokens per second of three calls."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        rows = engine.generate(vectors, asked, sampling)
        tokens = sum(len(one.token_ids) for row in rows for one in row)
        best = max(best, tokens / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "real", "cost"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=200)
    given = parser.parse_args()
    if given.what == "simulate":
        run_simulation()
    elif given.what == "cost":
        run_cost()
    else:
        run_real(given.workers, given.backend, given.candidates, given.prompts)
