"""The map of the code holds: imports point one way, by whatever door, no file is in a circle, heavy packages wait."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import esalign

ROOT = Path(__file__).parents[1]
LAYERS = [  # a module may import from its own layer and the ones before it
    {"types", "errors", "protocols", "seeds", "files", "registry", "assets"},
    {"config"},
    {"space", "data", "rewards"},
    {"optimizers", "engines", "fitness", "loop"},
    {"run", "sft"},
    {"distill"},
    {"report"},
    {"commands", "testing"},
    {"cli", "__main__"},
]
BACKEND_MAY_IMPORT = {"types", "errors", "protocols", "seeds", "files", "space", "engines", "registry"}
HEAVY = ("torch", "transformers", "peft", "datasets", "vllm", "llama_cpp", "nevergrad", "cma", "ray", "matplotlib")
IMPORTED_ON_USE = ("esalign.distill", "esalign.space.skeleton")  # they compute in torch throughout
MODULE = re.compile(r"esalign(_\w+)?(\.\w+)+(:\w+)?$")
PUBLIC = {f"esalign.{name}": f"esalign.{home}" for name, home in esalign._HOMES.items()}  # loaded on first use
GROUPS = re.compile(r"esalign\.(backends|optimizers|rewards|fitness|spaces|formats|doctor)$")


def name_of(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts).removeprefix("backends.").removesuffix(".__init__")


def names_a_module(value: object) -> bool:
    return isinstance(value, str) and bool(MODULE.match(value)) and not GROUPS.match(value)


def doors(source: str, package: str) -> set[str]:
    """Return all names that a source imports: by statement, or as text for `import_module`, `__import__` and the like.

    What is imported for type checkers alone does not count.

    Args:
        source: a file's text.
        package: where it lies, which is what ``from . import name`` means.
    """
    tree = ast.parse(source)
    unread = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            unread |= {id(inner) for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            home = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{home}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and names_a_module(node.value):
            names.add(node.value.replace(":", "."))
    return names


def graph(root: Path) -> dict[str, set[str]]:
    """Return {file's module: modules of ours that it imports}."""
    files = {name_of(f, root): f for place in ("esalign", "backends") for f in (root / place).rglob("*.py")}

    def owner(name: str) -> str | None:
        name = PUBLIC.get(name, name)
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    edges = {}
    for module, file in files.items():
        package = module if file.stem == "__init__" else module.rpartition(".")[0]
        edges[module] = {owner(name) for name in doors(file.read_text(), package)} - {None, module, "esalign"}
    return edges


def circle_in(edges: dict[str, set[str]]) -> list[str] | None:
    """Return the modules of one circle in their order, or None."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        for name in sorted(edges.get(module, ())):
            if found := walk(name, [*path, module]):
                return found
        done.add(module)
        return None

    return next((found for module in sorted(edges) if (found := walk(module, []))), None)


def layer_of(module: str) -> int:
    for number, layer in enumerate(LAYERS):
        if module in layer:
            return number
    pytest.fail(f"esalign.{module} has no place in the map: add it to LAYERS")


EDGES = graph(ROOT)
CORE = sorted(module for module in EDGES if module.startswith("esalign."))
BACKENDS = sorted(module for module in EDGES if module.startswith("esalign_"))


def test_no_file_is_in_a_circle():
    assert circle_in(EDGES) is None


@pytest.mark.parametrize(
    "door",
    [
        "from esalign.one import name",
        "from importlib import import_module\nimport_module('esalign.one')",
        "import importlib\ndef late():\n    return importlib.import_module('esalign.one')",
        "def late():\n    return __import__('esalign.one')",
        "HOME = 'esalign.one:name'",
        "from . import one",
        "from .one import name",
        "def late():\n    from ..esalign.one import name",
    ],
)
def test_the_guard_sees_a_circle_through_every_door(tmp_path, door):
    folder = tmp_path / "esalign"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text("import esalign.two\n")
    (folder / "two.py").write_text(door)
    assert circle_in(graph(tmp_path)) == ["esalign.one", "esalign.two"]


def test_the_guard_sees_a_circle_through_a_package_and_through_a_public_name(tmp_path):
    folder = tmp_path / "esalign"
    (folder / "loop").mkdir(parents=True)
    (folder / "loop" / "__init__.py").write_text("from esalign.loop.inner import search")
    (folder / "loop" / "inner.py").write_text("from esalign import search")
    assert circle_in(graph(tmp_path)) == ["esalign.loop", "esalign.loop.inner"]


@pytest.mark.parametrize("module", CORE)
def test_core_imports_point_one_way(module):
    own = layer_of(module.split(".")[1])
    for name in EDGES[module]:
        assert not name.startswith("esalign_"), f"the core imports the backend {name}"
        assert layer_of(name.split(".")[1]) <= own, f"{name} comes after {module} on the map"


@pytest.mark.parametrize("module", BACKENDS)
def test_backends_import_only_the_boundary(module):
    for name in EDGES[module]:
        if name.startswith("esalign."):
            assert name.split(".")[1] in BACKEND_MAY_IMPORT
        else:
            assert name.split(".")[0] == module.split(".")[0], f"{module} imports another backend, {name}"


def top_level_imports(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("module", [name for name in CORE if not name.startswith(IMPORTED_ON_USE)])
def test_core_modules_import_nothing_heavy_at_the_top(module):
    base = ROOT / module.replace(".", "/")
    file = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    assert not {name for name in top_level_imports(file) if name.split(".")[0] in HEAVY}


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
    engines = project["project"]["entry-points"]["esalign.backends"]
    assert engines.pop("fake") == "esalign.testing.fake:FakeBackend"  # the only one in the core
    modules = {value.split(":")[0] for value in engines.values()}
    assert {name.removeprefix("backends/") for name in packages if name.startswith("backends/")} == folders
    assert modules == folders


def test_type_checkers_of_plug_ins_see_the_types():
    assert (ROOT / "esalign" / "py.typed").exists()  # without it they take esalign for untyped
