"""The embedded model and adapter, and where they lie."""

from importlib.resources import files
from pathlib import Path

from esalign.files import expand_home

EMBEDDED = "embedded"
"""As a model's or adapter's path: the one that is shipped with esalign."""


def asset(name: str) -> Path:
    """Return the path of a file or folder that is shipped with esalign."""
    return Path(str(files("esalign"))) / "assets" / name


def model_path(path: str) -> str:
    """Return where a model lies, 'embedded' being the one that is shipped, and ``~`` the user's home."""
    return str(asset("embedded/model")) if path == EMBEDDED else expand_home(path)


def adapter_path(path: str) -> str:
    """Return where an adapter lies, 'embedded' being the one that is shipped, and ``~`` the user's home."""
    return str(asset("embedded/adapter")) if path == EMBEDDED else expand_home(path)
