"""Does resident memory stay flat over thousands of candidates?

    python examples/benchmarks/switch_memory.py [--engines torch vllm llama-cpp] [--switches 2000]

The embedded model, float32. Each engine runs in a process of its own. Every switch makes a new candidate current, which
answers one of 100 prompts with a few tokens. The first readings hold caches that fill up; growth is counted from the
second one on.
"""

import argparse
import subprocess
import sys

import numpy as np
import psutil

from esalign.assets import EMBEDDED, adapter_path
from esalign.commands.build import make_backend
from esalign.config.sections import BackendSection
from esalign.space import SvdLora
from esalign.types import Sampling

OPTIONS = {"torch": {"threads": 1}, "llama-cpp": {"threads": 1}}
READINGS, PROMPTS = 8, 100


def run_engine(name: str, switches: int) -> None:
    """Print an engine's resident memory over the switches, as a row of a Markdown table."""
    space = SvdLora.from_pretrained(adapter_path(EMBEDDED))
    section = BackendSection(name=name, dtype="float32", device="cpu", options=OPTIONS.get(name, {}))
    backend = make_backend(section, EMBEDDED, space)
    generator, process, sampling = np.random.default_rng(0), psutil.Process(), Sampling(max_tokens=2)
    prompts = [generator.integers(4, 250, 8 + j % 40).tolist() for j in range(PROMPTS)]
    readings = []
    for number in range(switches + 1):
        candidate = generator.standard_normal((1, space.dim)) * 0.5
        backend.generate(candidate, [prompts[number % PROMPTS]], sampling)
        if number % max(1, switches // READINGS) == 0:
            readings.append(process.memory_info().rss / 1e6)
    backend.close()
    growth = readings[-1] - readings[1]
    print(f"| {name} | {', '.join(f'{reading:.1f}' for reading in readings)} | {growth:+.1f} |", flush=True)


def main() -> None:
    """Run every engine in a process of its own; or, with --alone, one in this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["torch", "vllm", "llama-cpp"])
    parser.add_argument("--switches", type=int, default=2000)
    parser.add_argument("--alone", metavar="ENGINE")
    options = parser.parse_args()
    if options.alone:
        run_engine(options.alone, options.switches)
        return
    step = max(1, options.switches // READINGS)
    print(f"| engine | MB, every {step} switches | growth from the second on |\n|---|---|---|", flush=True)
    for name in options.engines:
        own = ["--alone", name, "--switches", str(options.switches)]
        subprocess.run([sys.executable, __file__, *own], check=True)


if __name__ == "__main__":
    main()
