"""Optimisers and engines are found by name, by the door that plug-ins use, and errors say the way out."""

import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest

import esalign
from esalign import registry
from esalign.commands.doctor import examine
from esalign.config.run import OptimizerSection
from esalign.errors import ConfigError, MissingPackageError

PLUGIN = """
import numpy as np

class Still:
    '''An optimiser that proposes its start for ever.'''

    def __init__(self, *, dim, sigma, population, seed, speed=1.0):
        self.speed, self.population, self._sigma, self._mean = speed, population, sigma, np.zeros(dim)

    def ask(self):
        return np.tile(self._mean, (self.population, 1))

    def tell(self, candidates, fitness): ...
    def state_dict(self): ...
    def load_state_dict(self, state): ...

    mean = property(lambda self: self._mean.copy())
    sigma = property(lambda self: 1 / 0)  # to look whether it is there is not to compute it

class Engine:
    generate = score = encode = close = None

    def __init__(self, *, model, space, dtype="int4", device="cpu", depth=3):
        self.model, self.space, self.dtype, self.device, self.depth = model, space, dtype, device, depth

class NeedsMissing:
    def __init__(self, *, model, space):
        import missing_engine.core

class NeedsMissingToo:
    def __init__(self, *, dim, sigma, population, seed):
        import missing_search

class Narrow:
    def __init__(self, *, dim, sigma, seed):
        pass

class Hollow:
    fingerprint = "a member that it has"

    def __init__(self, *args, **settings):
        pass

class Generous(Still):
    def __init__(self, *, dim, sigma, population, seed, **rest):
        super().__init__(dim=dim, sigma=sigma, population=population, seed=seed)
        self.rest = rest
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path, with the entry points given as {group: {name: value}}."""

    def put(groups, name="my_search", code=PLUGIN):
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return put


# --- names ---


def test_the_names_of_esalign_are_offered():
    assert registry.names(registry.OPTIMIZERS) == ["cma-es", "nevergrad", "openai-es", "random-search"]
    assert set(registry.names(registry.BACKENDS)) >= {"torch", "vllm", "llama-cpp"}
    assert "math" in registry.names(registry.REWARDS)


@pytest.mark.parametrize("name", ["cma-es", "openai-es", "random-search", "nevergrad:TwoPointsDE"])
def test_one_name_swaps_the_optimizer(name):
    optimizer = esalign.make_optimizer(name, dim=6, sigma=0.3, population=8, seed=0)
    candidates = optimizer.ask()
    optimizer.tell(candidates, np.arange(8.0))
    assert optimizer.mean.shape == (6,)
    assert optimizer.state_dict()["optimizer"] == name


def test_options_reach_the_optimizer():
    optimizer = registry.make_optimizer("cma-es", dim=6, population=8, covariance="diagonal")
    assert optimizer.state_dict()["covariance"] == "diagonal"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cmaes", {}, "unknown optimizer 'cmaes', did you mean 'cma-es'?; known: cma-es, nevergrad, openai-es, "),
        ("zzz", {}, "unknown optimizer 'zzz'; known: cma-es"),
        ("nevergrad:PSOO", {}, "unknown optimizer 'nevergrad:PSOO', did you mean 'PSO'?"),
        ("nevergrad:", {}, "optimizer 'nevergrad:' needs a second name, as in 'nevergrad:TwoPointsDE'"),
        ("nevergrad", {}, "optimizer 'nevergrad' needs a second name, as in 'nevergrad:TwoPointsDE'"),
        ("cma-es:full", {}, "unknown optimizer 'cma-es:full': only nevergrad has a second name"),
        ("cma-es", {"covarience": "full"}, "optimizer 'cma-es' has no option 'covarience', did you mean 'covariance'?"),
        ("random-search", {"speed": 2}, "optimizer 'random-search' has no option 'speed'; options: none"),
        ("nevergrad:PSO", {"name": "CMA"}, "optimizer 'nevergrad:PSO' has no option 'name'"),
    ],
)
def test_wrong_optimizers_are_one_clear_line(name, options, message):
    with pytest.raises(ConfigError) as caught:
        registry.make_optimizer(name, dim=6, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_option_that_is_a_setting_is_refused():
    assert registry.merge("optimizer 'cma-es'", {"sigma": 0.3}, {"speed": 1}) == {"sigma": 0.3, "speed": 1}
    with pytest.raises(ConfigError, match="optimizer 'cma-es' has no option 'sigma': it is a setting of its own"):
        registry.merge("optimizer 'cma-es'", {"sigma": 0.3}, {"sigma": 0.5})


# --- plug-ins of others ---


def test_installed_optimizer_is_made_by_name(install):
    install({registry.OPTIMIZERS: {"still": "my_search:Still"}})
    assert "still" in registry.names(registry.OPTIMIZERS)
    optimizer = registry.make_optimizer("still", dim=5, population=3, speed=2.0)
    assert optimizer.ask().shape == (3, 5)
    assert optimizer.speed == 2.0
    with pytest.raises(ConfigError, match=r"has no option 'sped', did you mean 'speed'\?; options: speed"):
        registry.make_optimizer("still", dim=5, sped=2.0)


def test_plugin_with_open_keywords_judges_its_options_itself(install):
    install({registry.OPTIMIZERS: {"generous": "my_search:Generous"}})
    assert registry.make_optimizer("generous", dim=5, anything=1).rest == {"anything": 1}


def test_installed_backend_is_loaded_with_what_was_given(install):
    install({registry.BACKENDS: {"mine": "my_search:Engine"}})
    engine = registry.load_backend("mine", model="folder", space="space", device="cuda", depth=7)
    assert (engine.model, engine.space, engine.dtype, engine.device, engine.depth) == (
        "folder", "space", "int4", "cuda", 7,
    )  # fmt: skip


def test_two_claims_to_one_name_are_refused(install):
    install({registry.OPTIMIZERS: {"twin": "my_search:Still"}})
    install({registry.OPTIMIZERS: {"twin": "other_search:Still"}}, name="other_search")
    with pytest.raises(ConfigError, match="'twin' is claimed by my_search:Still and by other_search:Still"):
        registry.make_optimizer("twin", dim=5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("my_search:Absent", "optimizer 'bad' is broken: my_search:Absent cannot be imported: "),
        ("my_serch:Still", "optimizer 'bad' is broken: my_serch:Still does not exist; reinstall"),
    ],
)
def test_broken_plugin_is_named(install, value, message):
    install({registry.OPTIMIZERS: {"bad": value}})
    with pytest.raises(ConfigError) as caught:
        registry.make_optimizer("bad", dim=5)
    assert str(caught.value).startswith(message)


def test_package_that_a_plugin_lacks_is_named(install):
    install({registry.BACKENDS: {"lacking": "my_search:NeedsMissing"}})
    with pytest.raises(
        ConfigError, match="backend 'lacking' needs the package 'missing_engine', which is not installed"
    ):
        registry.load_backend("lacking", model="m", space="s")
    install({registry.OPTIMIZERS: {"lacking": "my_search:NeedsMissingToo"}}, name="my_other")
    with pytest.raises(ConfigError, match="optimizer 'lacking' needs the package 'missing_search'"):
        registry.make_optimizer("lacking", dim=5)


@pytest.mark.parametrize(
    ("group", "make", "lacking"),
    [
        (
            registry.OPTIMIZERS,
            partial(registry.make_optimizer, "hollow", dim=5),
            "ask, tell, mean, sigma, state_dict, load_state_dict",
        ),
        (
            registry.SPACES,
            partial(esalign.make_space, "hollow"),
            "dim, modules, singular_values, fold, save_pretrained",
        ),
        (
            registry.BACKENDS,
            partial(registry.load_backend, "hollow", model="m", space=None),
            "generate, score, encode, close",
        ),
        (
            registry.FITNESS,
            partial(registry.make_fitness, "hollow", "the parts"),
            "prepare, evaluate, state_dict, load_state_dict",
        ),
    ],
)
def test_a_plugin_without_its_members_is_refused_when_it_is_made(install, group, make, lacking):
    install({group: {"hollow": "my_search:Hollow"}})
    with pytest.raises(ConfigError) as caught:
        make()
    what = registry.noun(group)
    assert str(caught.value) == f"{what} 'hollow' lacks {lacking}: see esalign.protocols.{what.capitalize()}"


def test_a_plugin_that_does_not_take_its_settings_is_named(install):
    install({registry.OPTIMIZERS: {"narrow": "my_search:Narrow"}})
    with pytest.raises(ConfigError, match="optimizer 'narrow' cannot be made with dim, sigma, population, seed: got "):
        registry.make_optimizer("narrow", dim=5)


def test_there_is_one_default_of_sigma_and_population():
    made = esalign.make_optimizer("random-search", dim=5)
    assert made.sigma == registry.DEFAULT_SIGMA  # in a configuration the space may have another
    assert len(made.ask()) == registry.DEFAULT_POPULATION == OptimizerSection().population


# --- what `esalign doctor` says ---


def test_doctor_lists_the_plugins_of_others_and_what_is_wrong_with_them(install):
    assert not [line for line in examine() if "my_search" in line]
    install({registry.OPTIMIZERS: {"still": "my_search:Still", "bad": "my_search:Absent"}})
    install({registry.SPACES: {"torn": "torn:Space"}}, name="torn", code="1 / 0")
    lines = list(examine())
    assert "  ok  optimizer still: my_search:Still, from my_search 1.0" in lines
    assert any(
        line.startswith("  !!  optimizer 'bad' is broken: my_search:Absent cannot be imported") for line in lines
    )
    assert "  !!  space 'torn' is broken: torn:Space cannot be imported: ZeroDivisionError: division by zero" in lines


# --- engines ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torhc", {}, "unknown backend 'torhc', did you mean 'torch'?; known: fake, llama-cpp, torch, vllm"),
        ("torch", {"chunk_sise": 1}, "backend 'torch' has no option 'chunk_sise'"),
    ],
)
def test_wrong_backends_are_one_clear_line(name, options, message):
    with pytest.raises(ConfigError) as caught:
        registry.load_backend(name, model="m", space=None, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("backend", "package"), [("vllm", "vllm"), ("llama-cpp", "llama_cpp")])
def test_missing_extra_says_how_to_install_it(backend, package):
    error = registry.import_failure(
        registry.entry_point(registry.BACKENDS, backend),
        ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.sampling"),
    )
    assert isinstance(error, MissingPackageError)
    assert str(error) == (
        f'backend {backend!r} needs the package {package!r}, which is not installed: pip install "esalign[{backend}]"'
    )


def test_looking_up_a_name_imports_no_heavy_package():
    code = """
    import sys
    from esalign import registry
    registry.make_optimizer("openai-es", dim=4)
    print([name for name in ("torch", "cma", "nevergrad", "transformers") if name in sys.modules])
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout
    assert printed == "[]\n"
