"""The map of the code holds: imports point one way, heavy packages load on use, packaging ships every backend."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import esalign

ROOT = Path(__file__).parents[1]
LAYERS = [  # a module may import from its own layer and the ones before it
    {"types", "errors", "protocols", "statistics", "wording"},
    {"plugins", "adapter_io", "checkpoint", "space", "text"},
    {"data", "rewards", "metrics", "demonstrations"},
    {"optimizers", "fitness", "evaluate", "surrogate"},
    {"loop", "registry", "config", "sft_config"},
    {"run"},
    {"export", "run_folder", "dashboard", "report", "assemble", "sft", "testing", "contracts"},
    {"distill"},
    {"align", "exports", "config_reference", "doctor", "cluster"},
    {"cli"},
]
BACKEND_MAY_IMPORT = {"types", "errors", "protocols", "space", "adapter_io", "plugins", "text"}
HEAVY = ("torch", "transformers", "peft", "datasets", "vllm", "llama_cpp", "nevergrad", "cma", "ray", "matplotlib")


def top_level_imports(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def all_imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def layer_of(module: str) -> int:
    for number, layer in enumerate(LAYERS):
        if module in layer:
            return number
    pytest.fail(f"esalign.{module} has no place in the map: add it to LAYERS")


CORE = sorted(
    file
    for file in (ROOT / "esalign").rglob("*.py")
    if file.parts[-1] != "__init__.py" or len(file.relative_to(ROOT).parts) > 2
)
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_core_imports_point_one_way(file):
    own = layer_of(file.relative_to(ROOT / "esalign").parts[0].removesuffix(".py"))
    for name in all_imports(file):
        assert not name.startswith("esalign_"), f"the core imports the backend {name}"
        parts = name.split(".")
        if parts[0] == "esalign" and len(parts) > 1:
            assert layer_of(parts[1]) <= own, f"{name} comes after it on the map"


@pytest.mark.parametrize("file", BACKENDS, ids=lambda file: str(file.relative_to(ROOT)))
def test_backends_import_only_the_boundary(file):
    for name in all_imports(file):
        parts = name.split(".")
        if parts[0] == "esalign":
            assert len(parts) > 1, "import from the module, not from the package"
            assert parts[1] in BACKEND_MAY_IMPORT


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_core_modules_import_nothing_heavy_at_the_top(file):
    if "distill" in file.parts:
        pytest.skip("distillation computes in torch throughout; it is imported on use")
    heavy = {name for name in top_level_imports(file) if name.split(".")[0] in HEAVY}
    assert not heavy


def test_import_and_help_load_no_torch():
    code = (
        "import sys, esalign, esalign.cli\n"
        "from typer.main import get_command\n"
        "get_command(esalign.cli.app)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in esalign.__all__:
        assert getattr(esalign, name).__name__ == name or callable(getattr(esalign, name))


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = esalign.nothing


def test_backend_folders_are_packages_and_entry_points():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {folder.name for folder in (ROOT / "backends").iterdir() if (folder / "__init__.py").exists()}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    modules = {value.split(":")[0] for value in project["project"]["entry-points"]["esalign.backends"].values()}
    assert {name.removeprefix("backends/") for name in packages if name.startswith("backends/")} == folders
    assert modules == folders
