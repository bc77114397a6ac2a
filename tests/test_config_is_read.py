"""No option is accepted and then ignored: some code reads every key of every schema."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

from esalign.config.sections import Section

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "esalign" / "config"
CODE = [
    ast.parse(file.read_text())
    for place in ("esalign", "backends")
    for file in sorted((ROOT / place).rglob("*.py"))
    if SCHEMAS not in file.parents  # to describe or check an option is not to heed it
]


def sections():
    """Return every schema of esalign/config, once."""
    modules = [import_module(f"esalign.config.{file.stem}") for file in SCHEMAS.glob("*.py") if file.stem[0] != "_"]
    found = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    return sorted((value for value in found if issubclass(value, Section)), key=lambda section: section.__name__)


def read_by(trees):
    """Return (keys that are read as an attribute, schemas whose fields are all read, as in ``Schema.model_fields``)."""
    read = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    ]
    keys = {node.attr for node in read}
    return keys, {ast.unparse(node.value) for node in read if node.attr == "model_fields"}


KEYS, WHOLE = read_by(CODE)


def unread_keys(section):
    """Return the keys that a section itself adds and that nobody reads; ``self.model_dump()`` reads them all."""
    if section.__name__ in WHOLE or "self.model_dump(" in inspect.getsource(section):
        return set()
    return set(section.__annotations__) - {"model_config"} - KEYS


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_is_read_by_some_code(section):
    assert unread_keys(section) == set()


def test_a_key_that_nobody_reads_is_found():
    class Planted(Section):
        name: str = ""
        never_read_by_anyone: int = 3

    assert unread_keys(Planted) == {"never_read_by_anyone"}
