"""What a distillation leaves behind: the student's adapter (or model), checked, with its card, result and report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from esalign.adapter_io import write_atomically
from esalign.distill.config import DistillConfig
from esalign.distill.engine import StudentEngine
from esalign.distill.models import load_model, save_student
from esalign.distill.parts import Parts
from esalign.export import REQUIRED_AGREEMENT, Verification, comparison_table
from esalign.report import write_report
from esalign.run import Reporter, Result
from esalign.run_folder import ADAPTER, MODEL, Outcome, write_result


def write_outcome(config: DistillConfig, folder: Path, parts: Parts, result: Result, reporter: Reporter) -> Outcome:
    """Write the student as it is, check that it answers the same when it is read back, and report."""
    whole = config.student.tuning == "full"
    saved = save_student(parts.student, config.student, folder / (MODEL if whole else ADAPTER))
    reporter.stage("loading what was saved with transformers and peft, and comparing its answers")
    verification = _verify(config, saved, parts)
    if not verification.good:
        reporter.warn(verification.note)
    write_card(saved, config, result, verification)
    write_result(folder, result, verification)
    write_report(folder)
    return Outcome(folder, result, verification)


def _verify(config: DistillConfig, saved: Path, parts: Parts) -> Verification:
    """Compare greedy answers of the saved student, loaded anew, with those of the student in memory."""
    section, training = config.student, config.training
    whole = section.tuning == "full"
    path, adapter = (str(saved), None) if whole else (section.path, str(saved))
    again = load_model("student", path, adapter, dtype=section.dtype, device=training.device)
    limits = {"sequences": training.sequences, "max_prompt_tokens": training.max_prompt_tokens}
    engines = [StudentEngine(model, parts.pair.vocabulary, **limits) for model in (parts.student, again)]
    sampling = replace(config.sampling.make(seed=0), temperature=0.0, stop=())
    prompts = [
        parts.engine.encode(example.prompt) for example in parts.validation.examples[: config.run.verify_prompts]
    ]
    meant, read = (engine.generate(np.zeros((1, 0)), prompts, sampling)[0] for engine in engines)
    equal = [one.token_ids == other.token_ids for one, other in zip(meant, read, strict=True)]
    agreement = sum(equal) / len(equal)
    note = f"{sum(equal)} of {len(equal)} greedy answers are the same after loading with transformers + peft"
    if agreement < REQUIRED_AGREEMENT:
        return Verification(False, agreement, len(equal), f"only {note}: do not use this student, and report a bug")
    return Verification(True, agreement, len(equal), note)


def write_card(folder: Path, config: DistillConfig, result: Result, verification: Verification) -> None:
    """Write the README.md that says what the student is, how it was made and how it did."""
    training = config.training
    kind = "model" if config.student.tuning == "full" else "LoRA adapter"
    card = f"""---
base_model: {json.dumps(config.student.path)}
library_name: {"transformers" if config.student.tuning == "full" else "peft"}
pipeline_tag: text-generation
tags: [esalign, distillation]
---

# {config.run.name}

A {kind} distilled on-policy from `{config.teacher.path}` by esalign, with
behaviour {config.behaviour.name!r} (trust-region behaviour blending: arXiv 2605.31159).

{comparison_table(result)}

All intervals are 95 %. The result is the student after update {result.generation}, chosen on validation problems of
their own.

- Data: `{config.data.source}`. Rewards: {", ".join(reward.name for reward in config.rewards)}.
- {config.describe()}; learning rate {training.learning_rate:g}, seed {config.run.seed}. Stopped: {result.reason}.
- Loss: {config.loss.divergence} on {"all" if config.loss.support is None else f"the top {config.loss.support}"} tokens.
- Check: {verification.note}.
"""
    write_atomically(folder / "README.md", card.encode())
