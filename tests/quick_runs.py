"""A whole run within the tests' own process, on the fake engine: milliseconds a generation, no model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esalign.commands import align as command
from esalign.commands import drive
from esalign.config.run import RunConfig
from esalign.files import write_atomically
from esalign.run.folder import Outcome
from esalign.run.verify import Verification
from esalign.space import Adapter, LoraModule, write_adapter

PROBLEMS = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(8) for b in range(8)]


def write_quick_run(folder: Path, **changes: Any) -> RunConfig:
    """Write adapter, problems and reward, and return the configuration; changes are given as section__key=value."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    factors = LoraModule("layer", A=as_float32(rng, 2, 6), B=as_float32(rng, 6, 2), scaling=1.0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layer"], "task_type": "CAUSAL_LM"}
    write_adapter(Adapter(config=config, modules=(factors,)), folder / "adapter")
    write_atomically(folder / "data.jsonl", "".join(json.dumps(row) + "\n" for row in PROBLEMS).encode())
    reward = "def variety(prompts, completions, **columns):\n    return [len(set(text)) / 12 for text in completions]\n"
    write_atomically(folder / "reward.py", reward.encode())
    raw: dict[str, Any] = {
        "model": {"path": "fake", "adapter": str(folder / "adapter")},
        "backend": {"name": "fake", "self_test": 0},
        "data": {"source": str(folder / "data.jsonl"), "validation_size": 8, "test_size": 16},
        "rewards": [{"name": f"{folder / 'reward.py'}:variety"}],
        "scoring": {"workers": 0},
        "sampling": {"max_tokens": 8},
        "fitness": {"prompts": 6},
        "optimizer": {"name": "openai-es", "population": 6},
        "run": {"name": "quick", "dir": str(folder / "runs"), "generations": 6, "evaluate_every": 2, "kl_prompts": 4},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        raw[section] = {**raw[section], name: value} if name else value
    return RunConfig.model_validate(raw)


def as_float32(rng: np.random.Generator, *shape: int) -> Any:
    """Return noise of a shape, float32."""
    return rng.standard_normal(shape).astype(np.float32)


class Recorder:
    """A reporter that keeps what it is told, and can stop a run by an error after some generations."""

    def __init__(self, *, fail_after: int | None = None, error: BaseException | None = None) -> None:
        self.rows: list[Any] = []
        self.warnings: list[str] = []
        self.stages: dict[str, tuple[int, int]] = {}
        self._fail_after, self._error = fail_after, error or KeyboardInterrupt()

    def start(self, config: Any, folder: Path, done: int) -> None:
        """Nothing to keep."""

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Keep what was said last of each stage."""
        self.stages[text] = (done, total)

    def generation(self, row: Any) -> None:
        """Keep a generation's metrics."""
        self.rows.append(row)
        if len(self.rows) == self._fail_after:
            self.fail()

    def fail(self, *_: Any) -> None:
        """Raise the error."""
        raise self._error

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)


def run_quickly(
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    *,
    reporter: Any = None,
    resume: bool = False,
    with_report: bool = False,
    check: Any = None,
) -> Outcome:
    """Run a configuration to its end, by default without its report, whose plots take longer than all the rest.

    For the last step, in which transformers answers with the saved adapter, there is no model: check stands for it.
    """
    verification = Verification(good=True, agreement=1.0, count=4, note="not compared")
    monkeypatch.setattr(command, "verify_adapter", check or (lambda *_, **__: verification))
    if not with_report:
        monkeypatch.setattr(drive, "write_report", lambda _folder: None)
    return command.align(config, reporter=reporter or Recorder(), resume=resume)
