"""The documents hold: links lead somewhere, generated pages are current, code runs, configurations are valid.

A block of code that is a fragment has ``<!-- fragment -->`` on the line before it, which readers do not see. A Python
block that begins with ``# name.py`` is written to that file, for the blocks that come after it on the page.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from esalign.assets import asset
from esalign.config.distill import DistillConfig
from esalign.config.reading import load_config
from esalign.config.reference import PAGES, reference
from esalign.config.run import RunConfig
from esalign.config.sft import SftConfig
from esalign.run.folder import MAY_CHANGE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE_FILES = sorted(DOCS.rglob("*.md"))
GUIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")]
EXAMPLES = [file for file in sorted((ROOT / "examples").rglob("*.py")) if "benchmarks" not in file.parts]
WITH_CODE = [ROOT / "README.md", *PAGE_FILES]
BLOCK = re.compile(r"^(<!-- fragment -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCHEMAS = {"student": DistillConfig, "out": SftConfig}  # by a key that no other kind of configuration has


def short(file):
    return str(file.relative_to(ROOT))


def blocks(file, language):
    """Return the (fragment, code) of a page's blocks in a language."""
    return [(bool(mark), code) for mark, kind, code in BLOCK.findall(file.read_text()) if kind == language]


def pages_of(nav) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages_of(value)


def test_every_page_is_in_the_navigation():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(pages_of(nav)) == sorted(str(file.relative_to(DOCS)) for file in PAGE_FILES)


@pytest.mark.parametrize("file", [*GUIDES, *PAGE_FILES], ids=short)
def test_every_link_leads_to_a_file(file):
    text = BLOCK.sub("", file.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", text):
        path = "".join(target).partition("#")[0]
        if not path or "://" in path:
            continue
        found = (file.parent / path).resolve()
        assert found.exists(), f"{short(file)} links to {path}, which does not exist"
        assert file in GUIDES or found.is_relative_to(DOCS), f"{short(file)} links to {path}, which the site lacks"


@pytest.mark.parametrize("command", PAGES)
def test_every_reference_page_is_current(command):
    page = DOCS / PAGES[command][0]
    assert page.read_text() == reference(command), "run: python -m esalign.config.reference docs"


def test_the_page_of_resuming_names_every_key_that_may_change():
    text = (DOCS / "runs.md").read_text().partition("## Resume")[2]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([\w.]+)`", " ".join(rows))) == sorted(MAY_CHANGE)


def test_the_optimiser_of_the_documents_is_that_of_the_contributing_guide():
    shown = [code for _, code in blocks(DOCS / "optimizers.md", "python") if "class Climb" in code]
    assert shown == [code for _, code in blocks(ROOT / "CONTRIBUTING.md", "python") if "class Climb" in code]


def test_the_architecture_page_names_every_part_of_the_package():
    text = (DOCS / "architecture.md").read_text()
    parts = [file.name for file in (ROOT / "esalign").iterdir() if not file.name.startswith("_")]
    parts = [name if "." in name else f"{name}/" for name in parts]
    assert not [name for name in parts if name not in text]


@pytest.mark.parametrize("file", EXAMPLES, ids=short)
def test_an_example_imports_public_names_alone(file):
    """Those that `esalign`, or a package of it, offers; no module inside one."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "esalign":
            module = importlib.import_module(node.module)
            assert hasattr(module, "__path__"), f"{node.module} is no package"
            public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
            assert {alias.name for alias in node.names} <= set(public)


@pytest.mark.parametrize("file", [file for file in WITH_CODE if blocks(file, "yaml")], ids=short)
def test_every_configuration_is_valid(file, tmp_path):
    """A whole one as it is; single sections over those of the quickstart."""
    for fragment, code in blocks(file, "yaml"):
        if fragment:
            continue
        config = tmp_path / "config.yaml"
        config.write_text(code)
        keys = set(yaml.safe_load(code))
        schema = next((schema for key, schema in SCHEMAS.items() if key in keys), RunConfig)
        below = [] if schema is not RunConfig or {"model", "data", "rewards"} <= keys else [asset("quickstart.yaml")]
        load_config([*below, config], schema=schema)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [file for file in WITH_CODE if any(not fragment for fragment, _ in blocks(file, "python"))], ids=short
)
def test_every_complete_python_block_runs(file, tmp_path):
    """In a folder with model/, adapter/ and problems.jsonl, each block in a process of its own."""
    for name in ("model", "adapter"):
        (tmp_path / name).symlink_to(asset(f"embedded/{name}"))
    (tmp_path / "problems.jsonl").write_text(
        "".join(f'{{"prompt": "{n} + 1 =", "answer": "{n + 1}"}}\n' for n in range(2000))
    )
    for number, (fragment, code) in enumerate(blocks(file, "python")):
        if fragment:
            continue
        named = re.match(r"# (\w+\.py)\n", code)
        script = tmp_path / (named[1] if named else f"block_{number}.py")
        script.write_text(code)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{code}\n{done.stderr}"
