"""Rows of raw columns from data files and Hugging Face data sets."""

import csv
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from esalign.errors import DataError
from esalign.registry import did_you_mean

Row = dict[str, Any]


def read_rows(source: str, *, config: str | None, split: str | None, options: Mapping[str, Any]) -> list[Row]:
    """Return all rows of a data file, a folder, or a Hugging Face data set.

    Args:
        source: path of a jsonl, json, parquet or csv file; a folder that ``datasets`` wrote or can read; or an id.
        config: configuration (subset) of the data set. Files have none.
        split: split of the data set, slices such as ``"train[:10%]"`` included. None takes the only split, or
            ``"train"``. Files have none.
        options: further arguments of ``datasets.load_dataset``, e.g. ``revision``. Files have none.

    Raises:
        DataError: nothing there, unreadable, or without a row.
    """
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None or path.is_dir():
        rows = _read_dataset(source, config=config, split=split, options=options)
    else:
        for name, value in (("config", config), ("split", split), ("options", options)):
            if value:
                raise DataError(f"'{source}' is a file, so it has no {name}: leave data.{name} out, got {value!r}")
        rows = _read_file(path, reader)
    if not rows:
        raise DataError(f"'{source}' holds no rows")
    return rows


def _read_file(path: Path, reader: Callable[[Path], list[Row]]) -> list[Row]:
    try:
        return reader(path)
    except FileNotFoundError:
        raise DataError(f"no data file '{path}'{_neighbour(path)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error}") from error


def _neighbour(path: Path) -> str:
    """Return a hint at a file with a similar name beside a missing one."""
    if not path.parent.is_dir():
        return f": there is no folder '{path.parent}'"
    return did_you_mean(path.name, [sibling.name for sibling in path.parent.iterdir()])


def _read_jsonl(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        return [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse_line(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}") from None
    return _as_row(row, f"{path}:{number}")


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with columns, got {type(value).__name__}")
    return value


def _read_json(path: Path) -> list[Row]:
    """Read a list of objects. Many files called .json hold a line per object: read those too."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_jsonl(path)
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from None
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects, got {type(value).__name__}")
    return [_as_row(item, f"{path}: item {index}") for index, item in enumerate(value)]


def _read_csv(path: Path) -> list[Row]:
    """Read a comma-separated file with a header. All values stay text, so that an answer of ``007`` survives."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows: list[Row] = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    expected = len(reader.fieldnames or ())
                    raise DataError(f"{path}:{reader.line_num}: expected {expected} fields, as the header has")
                rows.append(dict(row))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num + 1}: not valid CSV: {error}") from None
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"'{path}' is not a parquet file: {error}") from None
    return rows


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


_File = tuple[Path, Callable[[Path], list[Row]]]
_COMPRESSED = {".bz2", ".gz", ".lz4", ".xz", ".zst"}
_WHICH_FILES = {"cache_dir", "data_dir", "data_files", "revision", "token"}  # options that say no more than that
_NOT_READ = {".arrow", ".gz", ".tsv", ".txt", ".xlsx", ".yaml", ".zip"}


def _read_dataset(source: str, *, config: str | None, split: str | None, options: Mapping[str, Any]) -> list[Row]:
    _refuse_missing_path(source)
    import datasets

    path = Path(source).expanduser()
    saved = path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
    place = str(path) if path.is_dir() else source
    try:
        if saved:
            data = datasets.load_from_disk(str(path))
        else:
            files = _list_files(place, config, options)
            if files:
                return _read_files(files, source, split)
            data = datasets.load_dataset(place, config, split=split, **options)
    except DataError:
        raise
    except Exception as error:  # whatever hub, network, scripts and files may raise
        raise DataError(_failure(source, config, split, error)) from error
    return [dict(row) for row in _take_split(data, source, split if saved else None)]


def _list_files(place: str, config: str | None, options: Mapping[str, Any]) -> dict[str, list[_File]]:
    """Return the files of each split, chosen as Hugging Face does; none where some are of other kinds.

    ``datasets`` makes one type of all values of a column, so that "007" becomes 7 where another row has a number. So
    what can be read as single files is, unless its author says what the types are. Parquet files have types.
    """
    import datasets

    if options.keys() - _WHICH_FILES:
        return {}
    if snapshot := _find_snapshot(place, options.get("revision")):
        chosen = {key: value for key, value in options.items() if key not in ("revision", "token")}
        with suppress(Exception):  # it holds no data files: they may be prepared elsewhere in the cache
            return _list_files(snapshot, config, chosen)
    builder = datasets.load_dataset_builder(place, config, **options)
    splits = {str(split): [str(file) for file in files] for split, files in (builder.config.data_files or {}).items()}
    readable = _READERS.keys() - (() if Path(place).is_dir() else {".parquet"})
    if builder.info.features or not {_kind_of(file) for files in splits.values() for file in files} <= readable:
        return {}
    download = datasets.DownloadConfig(cache_dir=options.get("cache_dir"), token=options.get("token"))
    fetch = datasets.DownloadManager(download_config=download).download_and_extract
    return {split: [(Path(fetch(file)), _READERS[_kind_of(file)]) for file in files] for split, files in splits.items()}


def _find_snapshot(source: str, revision: str | None) -> str | None:
    """Return the folder of a data set in the cache of a hub that cannot be reached; None where there is none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}"
    if not constants.HF_HUB_OFFLINE or not (folder / "snapshots").is_dir():
        return None
    named = folder / "refs" / (revision or "main")
    if named.is_file() or revision:
        wanted = folder / "snapshots" / (named.read_text().strip() if named.is_file() else str(revision))
        return str(wanted) if wanted.is_dir() else None
    newest = max((folder / "snapshots").iterdir(), key=lambda one: one.stat().st_mtime, default=None)
    return None if newest is None else str(newest)


def _kind_of(file: str) -> str:
    """Return the ending of a file's name, without that of a compression.

    >>> _kind_of("hf://datasets/a/b@main/data/train.jsonl.gz"), _kind_of("train.JSON")
    ('.jsonl', '.json')
    """
    path = Path(file)
    return (Path(path.stem) if path.suffix.lower() in _COMPRESSED else path).suffix.lower()


def _read_files(files: Mapping[str, list[_File]], source: str, split: str | None) -> list[Row]:
    """Return the rows of a split of single files, of a slice such as ``train[:10%]``, or of several, ``train+test``."""
    from datasets import ReadInstruction

    if split is None or not set(split) & set("[+"):
        name = _choose_split(files, source, split)
        return [row for path, reader in files[name] for row in _read_file(path, reader)]
    rows = {name: _read_files(files, source, name) for name in files}
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(held) for name, held in rows.items()})
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]]


def _refuse_missing_path(source: str) -> None:
    """Refuse what can only be meant as a path and is not there, before a hub is asked for it."""
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if is_path and not Path(source).expanduser().exists():
        raise DataError(f"no data folder or file '{source}'{_neighbour(Path(source).expanduser())}")
    path = Path(source).expanduser()
    if not source or path.is_file() or path.suffix.lower() in _NOT_READ:
        known = ", ".join(sorted(_READERS))
        raise DataError(f"cannot tell what data source {source!r} is, expected a file that ends in one of {known}")


def _failure(source: str, config: str | None, split: str | None, error: Exception) -> str:
    name = f"{source!r}" + (f", config {config!r}" if config else "") + (f", split {split!r}" if split else "")
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    return f"cannot load data set {name}: {detail}" + (
        "" if Path(source).exists() else "; there is no local folder of that name either"
    )


def _take_split(data: Any, source: str, split: str | None) -> Any:
    import datasets

    if not isinstance(data, datasets.DatasetDict):
        if split:
            raise DataError(f"'{source}' was saved without splits: leave data.split out, got {split!r}")
        return data
    return data[_choose_split(data, source, split)]


def _choose_split(data: Mapping[str, Any], source: str, split: str | None) -> str:
    """Return the split that was asked for, else the only one, else ``train``."""
    name = split or (next(iter(data)) if len(data) == 1 else "train")
    if name not in data:
        raise DataError(f"'{source}' has no split {name!r}{did_you_mean(name, data)}; splits: {', '.join(data)}")
    return name
