"""`completions.jsonl`: what the start and the result write for every test problem, side by side for people to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from esalign.files import read_json_lines, write_atomically
from esalign.types import Sample

COMPLETIONS = "completions.jsonl"
State = Literal["start", "result"]


def write_texts(folder: Path, state: State, samples: Sequence[Sample]) -> None:
    """Write the completions of one state, each with the number of its problem; those of the other one stay.

    Args:
        folder: the run's.
        state: who wrote them.
        samples: one for each test problem, in their order.
    """
    file = folder / COMPLETIONS
    kept = [row for row in read_json_lines(file) if row.get("state") != state]
    rows = [{"state": state, "problem": number, **sample.row()} for number, sample in enumerate(samples)]
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*kept, *rows]).encode())
