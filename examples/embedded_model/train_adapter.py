"""Warm up the embedded model: a LoRA adapter from a few hundred demonstrations, as people might have written them."""

import argparse
import json
import shutil
from pathlib import Path
from random import Random

from make_data import DEMONSTRATIONS, countdown

from esalign import Example
from esalign.sft import SftOptions, train_sft


def main() -> None:
    """Train the adapter beside the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("build/model"))
    parser.add_argument("--out", type=Path, default=Path("build/adapter"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--rank", type=int, default=8, help="alpha is twice the rank")
    parser.add_argument("--examples", type=int, default=1000)
    options = parser.parse_args()

    rng = Random(options.seed + 100)
    documents = [countdown(rng, DEMONSTRATIONS) for _ in range(options.examples)]
    summary = train_sft(
        options.model,
        [Example(document.question, {"answer": document.answer}) for document in documents],
        completion_column="answer",
        out=options.out,
        options=SftOptions(
            rank=options.rank,
            alpha=2 * options.rank,
            learning_rate=options.lr,
            epochs=options.epochs,
            max_length=128,
            seed=options.seed,
            device="cpu",
        ),
        on_step=lambda step, loss: print(step, round(loss, 4)) if step % 25 == 0 else None,
    )
    publish(options.out)
    print(summary)


def publish(adapter: Path) -> None:
    """Leave in the adapter's folder what ships: no path of this machine and no model card."""
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = "esalign-embedded"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for extra in [file for file in adapter.iterdir() if file.name not in (path.name, "adapter_model.safetensors")]:
        shutil.rmtree(extra) if extra.is_dir() else extra.unlink()


if __name__ == "__main__":
    main()
