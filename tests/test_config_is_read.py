"""No option is accepted and then ignored: some code reads every key of every schema, from that very schema."""

import ast
import inspect
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

from esalign.config.sections import Section, section_in

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "esalign" / "config"
CODE = [  # to describe or check an option, as the schemas do, is not to heed it
    ast.parse(file.read_text())
    for place in ("esalign", "backends")
    for file in sorted((ROOT / place).rglob("*.py"))
    if SCHEMAS not in file.parents
]


def sections():
    """Return every schema of esalign/config, once."""
    modules = [import_module(f"esalign.config.{file.stem}") for file in SCHEMAS.glob("*.py") if file.stem[0] != "_"]
    found = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    return sorted((value for value in found if issubclass(value, Section)), key=lambda section: section.__name__)


NAMED = {section.__name__: {section} for section in sections()}
NAMED["Experiment"] = NAMED["C"] = (
    NAMED["RunConfig"] | NAMED["DistillConfig"]
)  # as esalign.config and drive.py have them
del NAMED["Section"]


def name_of(node):
    """Return ``limits`` of ``limits``, ``self._limits`` and ``about.limits``."""
    return (getattr(node, "id", None) or getattr(node, "attr", "")).removeprefix("_")


class Reads:
    """What code reads of which schema: {schema: its keys}, from annotations, and assignments from what has one."""

    def __init__(self, trees):
        self.fields, self.found = defaultdict(set), defaultdict(set)
        for tree in trees:  # the fields of dataclasses, which are read in other files
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    for field in node.body:
                        if isinstance(field, ast.AnnAssign):
                            self.fields[name_of(field.target)] |= self.noted(field.annotation)
        for tree in trees:
            self.read(tree)

    def noted(self, annotation):
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} if annotation else set()
        return set().union(*(NAMED.get(name, ()) for name in names))

    def read(self, tree):
        self.kept = defaultdict(set)  # what a file's classes keep as self.name
        functions = [node for part in tree.body for node in getattr(part, "body", []) if isinstance(part, ast.ClassDef)]
        functions += tree.body
        for node in functions:
            self.enter(node)
        for node in functions:  # again, as what a method reads may be kept by a later one
            self.enter(node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Load):
                    for section in self.type_of(inner.value):
                        self.found[section].add(inner.attr)

    def enter(self, function):
        """Learn what a function's names are; those inside it, of lambdas too, are taken for its own."""
        self.names = defaultdict(set)
        nodes = [] if isinstance(function, ast.ClassDef) else list(ast.walk(function))
        for node in nodes:
            if isinstance(node, ast.arg):
                self.names[node.arg] |= self.noted(node.annotation)
        for node in nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self.give(target, node.value)
            elif isinstance(node, ast.For | ast.comprehension):
                self.give(node.target, node.iter)

    def give(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for name, given in zip(target.elts, value.elts, strict=False):  # one may be starred
                self.give(name, given)
        else:
            known = self.kept if isinstance(target, ast.Attribute) else self.names
            known[name_of(target)] |= self.type_of(value)

    def type_of(self, node):
        """Return the schemas that an expression may be of."""
        if isinstance(node, ast.BoolOp):  # options or SftOptions()
            return set().union(*(self.type_of(value) for value in node.values))
        if isinstance(node, ast.Name):
            return self.names[node.id]
        if isinstance(node, ast.Attribute) and (of := self.type_of(node.value)):
            held = [section.model_fields[node.attr] for section in of if node.attr in section.model_fields]
            return {found for field in held if (found := section_in(field.annotation))}
        return self.kept[name_of(node)] | self.fields[name_of(node)] if isinstance(node, ast.Attribute) else set()


def unread_keys(section, reads):
    """Return the keys that a section itself adds and that nobody reads; ``self.model_dump()`` reads them all."""
    if "self.model_dump(" in inspect.getsource(section):
        return set()
    heirs = [keys for read, keys in reads.found.items() if issubclass(read, section)]
    return set(section.__annotations__) - {"model_config"} - set().union(*heirs)


READS = Reads(CODE)


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_is_read_by_some_code(section):
    assert unread_keys(section, READS) == set()


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("def f(planted: Planted): return planted.key", True),
        ("class Held:\n    limits: Planted\ndef f(held): return held.limits.key", True),
        (
            "class Kept:\n    def __init__(self, run: Planted): self._run = run\n    def f(self): return self._run.key",
            True,
        ),
        ("def f(other: SamplingSection): return other.key", False),
        ("def f(planted: Planted, other): planted.name; return other.key", False),
        ("def f(it: Planted): pass\ndef g(it: SamplingSection): return it.key", False),
    ],
)
def test_a_key_is_read_only_from_its_own_schema(code, read, monkeypatch):
    class Planted(Section):
        key: int = 3

    monkeypatch.setitem(NAMED, "Planted", {Planted})
    monkeypatch.setattr(inspect, "getsource", lambda _: "")
    assert unread_keys(Planted, Reads([ast.parse(code)])) == (set() if read else {"key"})
