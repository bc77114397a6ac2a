"""What a run's directory says, read without trust in its being complete."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from esalign.errors import CheckpointError
from esalign.files import read_json_lines
from esalign.fitness.completions import ERROR_EXAMPLES, ERRORS
from esalign.report.changes import Changes, find_changes
from esalign.report.words import DISTILLATION, SEARCH, Words, as_estimate, set_name
from esalign.run.folder import COMPLETIONS, CONFIG, DATA, ENVIRONMENT, METRICS, RESULT, SAMPLES
from esalign.run.statistics import Estimate

NESTED = ("fitness", "validation", "probe", "tokens", "machine")  # entries of a metrics row that hold several numbers
Fits: TypeAlias = Callable[[str, Any], bool]
"""Whether an entry, key and value, has the shape that the page takes for granted."""


@dataclass(frozen=True)
class RunFiles:
    """The files of one run.

    Args:
        folder: where they lie.
        config: the resolved configuration.
        environment: versions and machine.
        rows: one per generation, the start first.
        samples: completions, with their generation.
        result: how the run ended; None while it has not.
        notes: what was dropped, changed, cut or assumed of the data, as mappings of kind and text.
        changes: which test problems were gained and lost; None while the run has not ended.
        broken: what could not be read, in words; the page is written without it.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    notes: Sequence[Mapping[str, Any]] = ()
    changes: Changes | None = None
    broken: Sequence[str] = ()

    @property
    def words(self) -> Words:
        """What this kind of run calls its things."""
        words = DISTILLATION if "student" in self.config else SEARCH
        chosen = (self.config.get("run") or {}).get("select_by") or "reward"
        return words if chosen == "reward" else replace(words, measure=set_name(chosen))

    @property
    def comparisons(self) -> dict[str, dict[str, Estimate]]:
        """Start, result and gain of each held-out set; empty while the run has not ended."""
        found: dict[str, dict[str, Estimate]] = {}
        for name, sides in ((self.result or {}).get("comparisons") or {}).items():
            found[name] = {side: as_estimate(value) or as_estimate({}) for side, value in sides.items()}  # type: ignore[misc]
        return found


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run. What is broken is left out and named.

    Raises:
        CheckpointError: the folder holds no run.
    """
    if not (folder / METRICS).is_file() and not (folder / CONFIG).is_file():
        raise CheckpointError(f"'{folder}' is not a run: it holds neither {CONFIG} nor {METRICS}")
    broken: list[str] = []
    result = _as_mapping(_read(folder / RESULT, broken), RESULT, broken)
    if result is not None and not _is_whole(result.get("generation")):
        broken.append(f"{RESULT} does not say which generation the result is of, and is left out")
        result = None
    return RunFiles(
        folder=folder,
        config=_keep(_as_mapping(_read(folder / CONFIG, broken), CONFIG, broken), _is_section, CONFIG, broken),
        environment=_as_mapping(_read(folder / ENVIRONMENT, broken), ENVIRONMENT, broken) or {},
        rows=_read_lines(folder / METRICS, _is_metric, broken, needed="generation"),
        samples=_read_lines(folder / SAMPLES, _is_sample, broken),
        result=None if result is None else _keep(result, _is_result, RESULT, broken),
        notes=_keep(_as_mapping(_read(folder / DATA, broken), DATA, broken), _is_data, DATA, broken).get("notes", ()),
        changes=find_changes(_read_lines(folder / COMPLETIONS, _is_sample, broken, needed="problem")),
        broken=broken,
    )


def _read(file: Path, broken: list[str]) -> Any:
    """Return the content of a YAML or JSON file; None, and a note, where there is none."""
    import yaml

    if not file.exists():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        return yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError, RecursionError, OSError) as error:
        broken.append(f"{file.name} cannot be read, and is left out: {' '.join(str(error).split())[:200]}")
        return None


def _read_lines(file: Path, fits: Fits, broken: list[str], needed: str | None = None) -> list[dict[str, Any]]:
    """Return the lines of a file without what does not fit; without a line that lacks the needed whole number."""
    skipped: list[int] = []
    lines = read_json_lines(file, skipped=skipped)
    rows, dropped = [], 0
    for line in lines:
        if isinstance(line, dict) and (needed is None or _is_whole(line.get(needed))):
            rows.append(_keep(line, fits, file.name, broken))
        else:
            dropped += 1
    if skipped or dropped:
        broken.append(f"{len(skipped) + dropped} lines of {file.name} cannot be read, and are left out")
    return rows


def _as_mapping(content: Any, name: str, broken: list[str]) -> dict[str, Any] | None:
    if content is None or isinstance(content, dict):
        return content
    broken.append(f"{name} holds a {type(content).__name__} in place of keys and values, and is left out")
    return None


def _keep(content: dict[str, Any] | None, fits: Fits, name: str, broken: list[str]) -> dict[str, Any]:
    """Return the entries that have the shape which the page takes for granted; name the others, each once."""
    kept = {str(key): value for key, value in (content or {}).items() if fits(str(key), value)}
    for key in (content or {}).keys() - kept.keys():
        note = f"{key!r} of {name} has a shape that cannot be shown, and is left out"
        if note not in broken:
            broken.append(note)
    return kept


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))


def _is_section(key: str, value: Any) -> bool:
    return key not in ("run", "sampling") or value is None or isinstance(value, dict)


def _is_metric(key: str, value: Any) -> bool:
    if key == ERROR_EXAMPLES:
        return isinstance(value, dict)
    nested = key in NESTED or ("/" in key and not key.startswith(ERRORS))
    return _are_numbers(value) if nested else _is_number(value)


def _is_sample(key: str, value: Any) -> bool:
    return _is_number(value) if key in ("generation", "reward") else True


def _is_data(key: str, value: Any) -> bool:
    return key != "notes" or (isinstance(value, list) and all(isinstance(note, dict) for note in value))


def _is_result(key: str, value: Any) -> bool:
    """Say whether an entry of ``result.json`` is what `esalign.run.folder.write_result` writes."""
    if key == "comparisons":
        sides = list(value.values()) if isinstance(value, dict) else [None]
        return all(
            isinstance(s, dict) and {"start", "result", "gain"} <= s.keys() and all(map(_are_numbers, s.values()))
            for s in sides
        )
    if key == "totals":
        return isinstance(value, dict) and all(map(_are_numbers, value.values()))
    if key == "samples":
        return isinstance(value, list) and all(isinstance(s, dict) and _is_number(s.get("reward")) for s in value)
    if key in ("kl", "share"):
        return _is_number(value)
    return key != "verification" or value is None or isinstance(value, dict)
