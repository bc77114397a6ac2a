"""Align the embedded model in different precisions, and judge each winner in its own precision and in full.

    python examples/benchmarks/precision.py [--out runs/precision] [--only torch-int4 vllm-w8a8]

One run of the quickstart's configuration per engine and precision, into a folder of its own, which is left alone once
it is finished and gone on with where it was interrupted. Each winner answers the 1,000 test problems twice: in the
precision that it was found in, and by the torch engine in float32. The start stands beside both. The table, as
Markdown, holds what is finished.

    float32, bfloat16  weights and arithmetic
    int8, int4         torchao: quantised weights (INT8 per channel, INT4 in groups of 32), arithmetic in float32
    w8a8               vLLM: INT8 weights per channel and INT8 activations per token
    w4a16              vLLM: INT4 weights in groups of 32, arithmetic in bfloat16; not on CPUs without AVX-512
    q8_0, q4_0         llama.cpp: INT8 and INT4 in blocks of 32, activations in blocks of INT8
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from esalign.assets import EMBEDDED, asset, model_path
from esalign.commands.align import align
from esalign.commands.evaluate import judge
from esalign.config.reading import load_config
from esalign.config.run import RunConfig
from esalign.errors import BackendError
from esalign.report.terminal import PlainReporter
from esalign.run.folder import ADAPTER, RESULT
from esalign.run.statistics import Estimate, estimate, paired_difference

TORCH: dict[str, Any] = {"name": "torch", "dtype": "float32", "options": {"threads": 1}}
LLAMA_CPP: dict[str, Any] = {"name": "llama-cpp", "dtype": "float32", "options": {"threads": 1}}
BACKENDS: dict[str, dict[str, Any]] = {
    "torch-float32": TORCH,
    "torch-bfloat16": TORCH | {"dtype": "bfloat16"},
    "torch-int8": TORCH | {"options": {"threads": 1, "quantization": "int8"}},
    "torch-int4": TORCH | {"options": {"threads": 1, "quantization": "int4"}},
    "vllm-float32": {"name": "vllm", "dtype": "float32"},
    "vllm-bfloat16": {"name": "vllm", "dtype": "bfloat16"},
    "vllm-w8a8": {"name": "vllm", "dtype": "float32"},
    "vllm-w4a16": {"name": "vllm", "dtype": "bfloat16"},
    "llama-cpp-f32": LLAMA_CPP,
    "llama-cpp-q8_0": LLAMA_CPP | {"options": {"threads": 1, "quantization": "q8_0"}},
    "llama-cpp-q4_0": LLAMA_CPP | {"options": {"threads": 1, "quantization": "q4_0"}},
}
SCHEMES = ("w8a8", "w4a16")
SCORES = "full_precision.json"


def quickstart(out: Path, name: str) -> RunConfig:
    """Return the quickstart's configuration in a precision."""
    kind = name.rpartition("-")[2]
    model = quantized(out, kind) if kind in SCHEMES else EMBEDDED
    changes = {"model.path": model, "backend": BACKENDS[name], "run.dir": str(out), "run.name": name}
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load_config([asset("quickstart.yaml")], overrides, schema=RunConfig)


def quantized(out: Path, scheme: str) -> str:
    """Return the folder of the embedded model quantised for vLLM, making it where it is not there."""
    from esalign_vllm.quantize import quantize_model

    folder = out / "models" / scheme
    if not (folder / "config.json").is_file():
        quantize_model(model_path(EMBEDDED), folder, scheme=scheme)
    return str(folder)


def run(out: Path, name: str) -> None:
    """Align in a precision, and judge the winner in full precision, as far as that is not done yet."""
    folder = out / name
    if not (folder / RESULT).is_file():
        with PlainReporter(Console(soft_wrap=True)) as reporter:
            align(quickstart(out, name), reporter=reporter, resume=folder.is_dir())
    judge_in_full_precision(out, str(folder / ADAPTER), folder / SCORES)
    judge_in_full_precision(out, EMBEDDED, out / SCORES)


def judge_in_full_precision(out: Path, adapter: str, file: Path) -> None:
    """Write the scores of an adapter on the test problems, by the torch engine in float32."""
    if not file.is_file():
        result = judge(quickstart(out, "torch-float32"), adapter=adapter, split="test")
        file.write_text(json.dumps(result.scores.tolist()))


def row(out: Path, name: str) -> str | None:
    """Return a line of the table; None while its run is not finished."""
    files = (out / name / RESULT, out / name / SCORES, out / SCORES)
    if not all(file.is_file() for file in files):
        return None
    result, after, before = (json.loads(file.read_text()) for file in files)
    own = {key: Estimate(**value) for key, value in result["comparisons"]["test/greedy"].items()}
    transferred, gain = estimate(after), paired_difference(np.asarray(after), np.asarray(before))
    seconds = f"{result['totals']['machine']['search_seconds']:.0f}"
    cells = (own["start"], own["result"], signed(own["gain"]), transferred, signed(gain), seconds)
    return f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |"


def signed(gain: Estimate) -> str:
    """Return a gain with its interval."""
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--only", nargs="*", choices=BACKENDS, default=list(BACKENDS))
    options = parser.parse_args()
    for name in options.only:
        try:
            run(options.out, name)
        except BackendError as error:
            print(f"{name}: {error}")
    if (options.out / SCORES).is_file():
        print(f"\nfull precision, start: {estimate(json.loads((options.out / SCORES).read_text()))}\n")
    print("| precision | own: start | aligned | gain | in float32: aligned | gain | search (s) |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(line for line in (row(options.out, name) for name in BACKENDS) if line))


if __name__ == "__main__":
    main()
