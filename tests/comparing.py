"""For tests of the comparison of the benchmarks, which is a program and no package."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks" / "compare"


@pytest.fixture(autouse=True)
def comparison(monkeypatch):
    """Its modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for file in FOLDER.glob("[a-z]*.py"):  # not __main__
        sys.modules.pop(file.stem, None)
