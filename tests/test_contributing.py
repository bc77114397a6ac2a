"""A reader of CONTRIBUTING.md alone can add a plug-in: each example is installed as a package, and used by name."""

import functools
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import esalign
from esalign.assets import asset
from esalign.errors import ConfigError, RewardError
from esalign.testing import BACKEND_CLAIMS, OPTIMIZER_CLAIMS, SPACE_CLAIMS, Subject

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"
SECTIONS = ("Add an optimiser", "Add a space", "Add a reward", "Add a backend")
MOST_LINES = 30
ADAPTER = asset("embedded/adapter")
MODEL = asset("embedded/model")


def blocks(section, language):
    """Return the code blocks of a language in a section of the guide."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def example(section):
    """Return an example's module, its code, and its entry points as {group: {name: value}}."""
    code = blocks(section, "python")[0]
    (entry_points,) = blocks(section, "toml")
    module = re.match(r"# (\w+)\.py\n", code)[1]
    return module, code, tomllib.loads(entry_points)["project"]["entry-points"]


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """All examples as one installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "contributed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: contributed\nVersion: 1.0\n")
    lines, modules = [], []
    for section in SECTIONS:
        module, code, groups = example(section)
        (folder / f"{module}.py").write_text(code)
        modules.append(module)
        sys.modules.pop(module, None)  # another test may have a plug-in of that name
        for group, points in groups.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    for module in modules:
        sys.modules.pop(module, None)


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_with_its_entry_point_is_short(section):
    lines = blocks(section, "python")[0] + blocks(section, "toml")[0]
    assert len([line for line in lines.splitlines() if line.strip() and not line.startswith("#")]) <= MOST_LINES


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_has_a_type(section):
    module, _, groups = example(section)
    for points in groups.values():
        for value in points.values():
            factory = getattr(importlib.import_module(module), value.partition(":")[2])
            for parameter in inspect.signature(factory).parameters.values():
                assert parameter.annotation is not parameter.empty, f"{value} does not annotate {parameter.name}"


@pytest.mark.parametrize("claim", OPTIMIZER_CLAIMS, ids=lambda claim: claim.__name__)
def test_the_optimiser_keeps_the_contract(claim):
    claim(functools.partial(esalign.make_optimizer, "climb"))


def test_the_optimiser_has_checked_options():
    assert esalign.make_optimizer("climb", dim=4, shrink=0.5).state_dict()["shrink"] == 0.5
    with pytest.raises(ConfigError, match="has no option 'shrnk', did you mean 'shrink'"):
        esalign.make_optimizer("climb", dim=4, shrnk=0.5)
    with pytest.raises(ConfigError, match="option 'shrink' is 'much', input should be a valid number"):
        esalign.make_optimizer("climb", dim=4, shrink="much")


@pytest.fixture
def space():
    return esalign.make_space("subspace", model=str(MODEL), adapter=str(ADAPTER), size=5)


@pytest.mark.parametrize("claim", SPACE_CLAIMS, ids=lambda claim: claim.__name__)
def test_the_space_keeps_the_contract(claim):
    claim(functools.partial(esalign.make_space, "subspace"), adapter="embedded")


def test_the_space_has_a_fingerprint_of_its_options(space):
    other = esalign.make_space("subspace", model=None, adapter=str(ADAPTER), size=5, seed=1)
    assert other.fingerprint != space.fingerprint


def test_the_space_has_checked_options():
    with pytest.raises(ConfigError, match="option 'size' is 'big', input should be a valid integer"):
        esalign.make_space("subspace", model=None, adapter=str(ADAPTER), size="big")


@pytest.mark.slow
def test_an_engine_takes_the_space_as_it_is(space):
    backend = esalign.load_backend("torch", model=str(MODEL), space=space, dtype="float32", device="cpu")
    rows = backend.generate(np.zeros((2, 5)), ["Make 5 of 2 and 3"], esalign.Sampling(max_tokens=4))
    assert rows[0] == rows[1]
    backend.close()


def test_the_reward_scores_by_name():
    reward = esalign.load_reward("brief", budget=4)
    texts = ["42", "41", "it is 42", "42"]
    assert reward(prompts=["?"] * 4, completions=texts, answer=["42", "42", "42", None]) == [1.0, 0.0, 0.5, None]
    with pytest.raises(RewardError, match="option 'budget' is 'small'"):
        esalign.load_reward("brief", budget="small")


@pytest.fixture(scope="module")
def subject():
    inner = esalign.SvdLora.from_pretrained(ADAPTER)

    def make():
        return esalign.load_backend("timed", model=str(MODEL), space=inner, dtype="float32", device="cpu")

    made = Subject(make, model=MODEL, space=inner, prompts=["1 + 2 =", "Make 7", "Numbers: 3, 4", "a"], max_tokens=8)
    yield made
    assert made.backend.seconds > 0
    made.backend.close()


QUICK = {"keeps_to_max_tokens", "reports_each_completion_once", "completes_nothing_without_prompts", "closes_twice"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "claim", [claim for claim in BACKEND_CLAIMS if claim.__name__ in QUICK], ids=lambda claim: claim.__name__
)
def test_the_backend_answers_by_name(subject, claim):
    claim(subject)
