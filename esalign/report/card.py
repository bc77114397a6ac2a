"""Model cards: the README.md that says what was made, how, and how it did."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from esalign.files import write_atomically
from esalign.run.verify import Verification

if TYPE_CHECKING:
    from esalign.config.distill import DistillConfig
    from esalign.config.run import RunConfig
    from esalign.run.run import Result


def comparison_table(result: "Result") -> str:
    """Return the start and the result on every held-out set as a Markdown table."""
    head = ["| held-out problems | start | result | gain (paired) | problems |", "|---|---|---|---|---|"]
    rows = [
        f"| {name} | {c.start} | {c.result} | {c.gain.mean:+.3f} [{c.gain.low:+.3f}, {c.gain.high:+.3f}] "
        f"| {c.start.count} |"
        for name, c in result.comparisons.items()
    ]
    return "\n".join(head + rows)


def write_model_card(folder: Path, config: "RunConfig", result: "Result", verification: Verification) -> None:
    """Write the README.md that says what the adapter is, how it was made and how it did."""
    rewards = ", ".join(f"{reward.name} (weight {reward.weight:g})" for reward in config.rewards)
    kl = "not measured" if result.kl is None else f"{result.kl:.4f} nats per token"
    card = f"""---
base_model: {json.dumps(config.model.path)}
library_name: peft
pipeline_tag: text-generation
tags: [lora, esalign, evolution-strategies]
---

# {config.run.name}

A LoRA adapter aligned without gradients by esalign: an evolution strategy
searched over the singular values of the adapter `{config.model.adapter}` (ESSA, arXiv 2507.04453).

{comparison_table(result)}

All intervals are 95 %. The result is the mean of generation {result.generation}, chosen on validation problems of
their own.

- Data: `{config.data.source}`. Rewards: {rewards}.
- Optimiser: {config.optimizer.name}, {config.optimizer.population} candidates x {config.fitness.prompts} problems,
  sigma {config.optimizer.sigma:g}, seed {config.run.seed}. Stopped: {result.reason}.
- KL to the start: {kl}.
- Check: {verification.note}.
"""
    write_atomically(folder / "README.md", card.encode())


def write_student_card(folder: Path, config: "DistillConfig", result: "Result", verification: Verification) -> None:
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
