"""The configuration is strict, and says what is wrong in one line."""

import json
import re
from pathlib import Path

import pytest
import yaml

from esalign.cli import split_arguments
from esalign.config.reading import load_config
from esalign.config.reference import commented_config, reference
from esalign.config.run import RunConfig
from esalign.errors import ConfigError

GOOD = """
model: {path: m, adapter: a}
data: {source: reasoning-gym:countdown}
rewards: [{name: reasoning-gym}]
"""


@pytest.fixture
def good(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("modle.path=x", "unknown key 'modle', did you mean 'model'?"),
        ("model.pth=x", "unknown key 'model.pth', did you mean 'path'?"),
        ("run.generatoins=3", "did you mean 'generations'?"),
        ("optimizer.popsize=3", "unknown key 'optimizer.popsize', expected one of name, population, sigma, options"),
        ("data.test.sorce=x", "did you mean 'source'?"),
        ("sampling.temprature=1", "did you mean 'temperature'?"),
        ("rewards=[{nme: math}]", "did you mean 'name'?"),
        ("rewards=[]", "'rewards' is ()|'rewards' is \\[\\]"),
        ("optimizer.population=1", "'optimizer.population' is 1, input should be greater than or equal to 2"),
        ("run.generations=many", "'run.generations' is 'many'"),
        ("run.name=a/b", "'run.name' is 'a/b'"),
        ("model=null", "'model' is missing"),
        ("run", "expected section.key=value"),
        ("run.seed=[1", "not valid YAML"),
        ("run.tracker=mlflow", "'run.tracker' is 'mlflow'"),
    ],
)
def test_mistakes_are_told_with_their_path(good, override, told):
    with pytest.raises(ConfigError, match=told.replace("?", "\\?").replace("(", "\\(").replace(")", "\\)")) as caught:
        load_config([good], [override], schema=RunConfig)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_told_of_the_override_that_made_it_and_else_of_the_file(good, tmp_path):
    with pytest.raises(ConfigError, match=r"^optimizer={popl: 3}: unknown key"):
        load_config([good], ["run.seed=1", "optimizer={popl: 3}", "optimizer.sigma=1"], schema=RunConfig)
    top = tmp_path / "top.yaml"
    top.write_text("optimizer: {popl: 3}\n")
    with pytest.raises(ConfigError, match=rf"^{good}, {top}: unknown key"):
        load_config([good, top], ["run.seed=1", "optimizer.sigma=1"], schema=RunConfig)


def test_later_files_and_overrides_win(good, tmp_path):
    top = tmp_path / "top.yaml"
    top.write_text("optimizer: {sigma: 0.1, population: 8}\n")
    config = load_config([good, top], ["optimizer.sigma=0.7", "run.name=x"], schema=RunConfig)
    assert (config.optimizer.sigma, config.optimizer.population, config.run.name) == (0.7, 8, "x")


@pytest.mark.parametrize(
    ("content", "told"),
    [("a: [", "not valid YAML at line"), ("- a", "expected sections"), ("\x00", "not valid YAML")],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, content, told):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=told):
        load_config([file], schema=RunConfig)


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="esalign init"):
        load_config([tmp_path / "none.yaml"], schema=RunConfig)


def test_command_line_keys_may_be_written_as_options():
    arguments = ["a.yaml", "--run.name", "x", "--run.seed=3", "optimizer.sigma=1"]
    assert split_arguments(arguments) == (["a.yaml"], ["run.name=x", "run.seed=3", "optimizer.sigma=1"])
    with pytest.raises(ConfigError, match="no option '--resumee'"):
        split_arguments(["--resumee"])
    with pytest.raises(ConfigError, match="needs a value"):
        split_arguments(["--run.name"])


def test_commented_config_is_a_valid_run_with_the_defaults(tmp_path):
    file = tmp_path / "esalign.yaml"
    file.write_text(commented_config())
    config = load_config([file], schema=RunConfig)
    assert config.optimizer.population == RunConfig.model_fields["optimizer"].default.population
    uncommented = re.sub(r"^(\s*)# (\w+: )", r"\1\2", commented_config(), flags=re.MULTILINE)
    keys = yaml.safe_load(uncommented)
    assert set(keys) == set(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("two", "two"),
        ("my run (2)", "my-run-2-"),
        ("007", "007"),
        ("1e3", "1e3"),
        ("yes", "yes"),
        (".hidden", "hidden"),
        ("größe", "größe"),
        ('a"b', "a-b"),
        ("---", "my-run"),
        ("x" * 250, "x" * 50),
    ],
)
def test_the_commented_config_calls_its_runs_after_its_file(tmp_path, file, name):
    (tmp_path / "file.yaml").write_text(commented_config(file))
    assert load_config([tmp_path / "file.yaml"], schema=RunConfig).run.name == name


@pytest.mark.parametrize("name", ["a b", "a/b", "..", ".a", "-a", "", "a\n", "ä" * 101, "x" * 201])
def test_a_run_that_cannot_be_called_so_is_told_in_words(good, name):
    with pytest.raises(ConfigError) as caught:
        load_config([good], [f"run.name={json.dumps(name)}"], schema=RunConfig)
    assert "expected the name of a folder: letters, digits, '_', '-' and '.'" in str(caught.value)
    assert "pattern" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "7b-run.2", "_x", "größe", "x" * 200])
def test_a_run_may_be_called_by_letters_digits_and_marks(good, name):
    assert load_config([good], [f"run.name={json.dumps(name)}"], schema=RunConfig).run.name == name


def test_the_reference_page_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: python -m esalign.config.reference > docs/configuration.md"
