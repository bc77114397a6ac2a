"""Model cards: the README.md that says what was made, how, and how it did."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esalign.files import write_atomically
from esalign.report.words import Words, score
from esalign.run.verify import Verification

if TYPE_CHECKING:
    from esalign.run.result import Result


@dataclass(frozen=True)
class CardFacts:
    """What a model card says that differs between kinds of runs.

    Args:
        base_model: Hugging Face id or path.
        library: ``peft`` or ``transformers``.
        tags: for the hub.
        summary: what it is, in Markdown.
        settings: how it was made, a line each.
        words: what this kind of run calls its things.
    """

    base_model: str
    library: str
    tags: tuple[str, ...]
    summary: str
    settings: tuple[str, ...]
    words: Words


def write_card(folder: Path, run: str, facts: CardFacts, result: "Result", verification: Verification | None) -> None:
    """Write the README.md that says what was made, how it was made and how it did.

    Args:
        folder: of the adapter or model.
        run: the run's name.
        facts: what differs between kinds of runs.
        result: how the run ended.
        verification: how what was saved compares with what was meant; None until it is known.
    """
    table = [
        f"| {name} | {c.start} | {c.result} | {score(c.gain, '+.3f')} | {c.start.count} |"
        for name, c in result.comparisons.items()
    ]
    kl = [] if result.kl is None else [f"KL to the start: {result.kl:.4f} nats per token."]
    lines = [
        *facts.settings,
        f"Stopped: {result.reason}.",
        *kl,
        f"Check: {verification.note if verification else 'not done'}.",
    ]
    card = f"""---
base_model: {json.dumps(facts.base_model)}
library_name: {facts.library}
pipeline_tag: text-generation
tags: [{", ".join(facts.tags)}]
---

# {run}

{facts.summary}

| held-out problems | start | result | gain (paired) | problems |
|---|---|---|---|---|
{chr(10).join(table)}

All intervals are 95 %. The result is {facts.words.result_of(result.generation, result.share)}, chosen on
validation problems of their own.

"""
    write_atomically(folder / "README.md", (card + "".join(f"- {line}\n" for line in lines)).encode())
