"""What a run's directory says, read without trust in its being complete."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esalign.errors import CheckpointError
from esalign.files import read_json_lines
from esalign.report.words import Words, as_estimate, words_for
from esalign.run.statistics import Estimate

CONFIG, ENVIRONMENT, DATA, RESULT = "config.yaml", "environment.json", "data.json", "result.json"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


@dataclass(frozen=True)
class RunFiles:
    """The files of one run.

    Args:
        folder: where they lie.
        config: the resolved configuration.
        environment: versions and machine.
        rows: one per generation, the start first.
        samples: answers, with their generation.
        result: how the run ended; None while it has not.
        notes: what was dropped, changed, cut or assumed of the data, as mappings of kind and text.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    notes: Sequence[Mapping[str, Any]] = ()

    @property
    def words(self) -> Words:
        """What this kind of run calls its things."""
        return words_for(self.config)

    @property
    def comparisons(self) -> dict[str, dict[str, Estimate]]:
        """Start, result and gain of each held-out set; empty while the run has not ended."""
        found: dict[str, dict[str, Estimate]] = {}
        for name, sides in ((self.result or {}).get("comparisons") or {}).items():
            found[name] = {side: as_estimate(value) or as_estimate({}) for side, value in sides.items()}  # type: ignore[misc]
        return found


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run.

    Raises:
        CheckpointError: the folder holds no run, or a file of it is broken.
    """
    if not (folder / METRICS).is_file() and not (folder / CONFIG).is_file():
        raise CheckpointError(f"'{folder}' is not a run: it holds neither {CONFIG} nor {METRICS}")
    return RunFiles(
        folder=folder,
        config=_read_yaml(folder / CONFIG),
        environment=_read_json(folder / ENVIRONMENT) or {},
        rows=read_json_lines(folder / METRICS),
        samples=read_json_lines(folder / SAMPLES),
        result=_read_json(folder / RESULT),
        notes=(_read_json(folder / DATA) or {}).get("notes") or (),
    )


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{file}' is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{file}' holds a {type(content).__name__}, expected a JSON object")
    return content


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    if not file.exists():
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{file}' is not valid YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}
