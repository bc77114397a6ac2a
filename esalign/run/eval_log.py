"""All completions of an evaluation as JSON lines, with the names that lm-eval's ``--log_samples`` has for them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esalign.files import finite, write_atomically
from esalign.run.judged import Judged
from esalign.types import Sampling


def write_log(file: Path, judged: Sequence[Judged], *, split: str, sampling: Sampling) -> None:
    """Write one line for each model, problem and sample. What JSON does not know is written as text, NaN as null.

    Args:
        file: where to.
        judged: the models.
        split: of the problems.
        sampling: how completions were decoded.
    """
    rows = (row for one in judged for row in _rows(one, split, sampling))
    lines = (json.dumps(finite(row), ensure_ascii=False, default=str) + "\n" for row in rows)
    write_atomically(file, "".join(lines).encode(errors="replace"))


def _rows(judged: Judged, split: str, sampling: Sampling) -> Iterator[dict[str, Any]]:
    rewards, answers = judged.rewards, judged.answers
    decoding = {name: value for name, value in asdict(sampling).items() if name not in ("seed", "offset", "greedy")}
    for number, example in enumerate(judged.examples):
        for sample in range(judged.samples):
            completion, verdicts = judged.completion(number, sample), _verdicts(judged, number, sample)
            yield {
                "model": judged.name,
                "split": split,
                "doc_id": number,
                "sample": sample,
                "prompt": example.prompt,
                "completion": completion.text,
                "reward": rewards[number, sample],
                "tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "doc": example.columns,
                "target": example.columns.get("answer"),
                "arguments": [[example.prompt, decoding]],
                "resps": [[completion.text]],
                "filtered_resps": [answers[number][sample]],
                "metrics": ["reward", *verdicts],
                **verdicts,
            }


def _verdicts(judged: Judged, number: int, sample: int) -> dict[str, Any]:
    """Return what lm-eval's task ifeval notes of a completion; nothing where instructions were not judged."""
    if judged.instructions is None:
        return {}
    follows = {mode: found[number][sample].tolist() for mode, found in judged.instructions.follows.items()}
    prompts = {f"prompt_level_{mode}_acc": all(found) for mode, found in follows.items()}
    return {**prompts, **{f"inst_level_{mode}_acc": found for mode, found in follows.items()}}
