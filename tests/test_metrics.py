"""Trackers get the numbers of every generation, and never end a run."""

import sys
from types import ModuleType

import pytest

from esalign.errors import ConfigError, MissingPackageError
from esalign.run.trackers import make_tracker


@pytest.fixture
def service(monkeypatch):
    """A module with trackio's interface that notes its calls, and fails at generation 2."""
    module = ModuleType("trackio")
    module.calls = []
    module.init = lambda **options: module.calls.append(("init", options["name"]))

    def log(metrics, step):
        if step == 2:
            raise ConnectionError("no route to the service")
        module.calls.append((step, metrics))

    module.log = log
    module.finish = lambda: module.calls.append(("finish",))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def make(kind, folder):
    return make_tracker(kind, name="small", folder=folder, config={"seed": 0})


def test_a_tracker_gets_the_numbers_until_it_fails_which_is_told_once(service, tmp_path, caplog):
    tracker = make("trackio", tmp_path)
    for generation in (1, 2, 3):
        tracker.log({"fitness/mean": 0.5}, generation)
    tracker.finish()
    assert service.calls == [("init", "small"), (1, {"fitness/mean": 0.5})]
    assert [record.getMessage() for record in caplog.records] == [
        "tracker 'trackio' failed and gets no more numbers: no route to the service"
    ]


def test_a_service_that_refuses_to_start_is_one_clear_error(service, tmp_path):
    def refuse(**_):
        raise RuntimeError("not logged in")

    service.init = refuse
    with pytest.raises(ConfigError, match="'trackio' cannot start: not logged in"):
        make("trackio", tmp_path)


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("trackio", MissingPackageError, r'pip install "esalign\[trackers\]"'),
        ("wandb", ConfigError, "pip install wandb"),
        ("tensorboard", ConfigError, "pip install tensorboard"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(kind, error, told, tmp_path, monkeypatch):
    for module in ("trackio", "wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(error, match=told):
        make(kind, tmp_path)


def test_no_tracker_is_none(tmp_path):
    assert make("none", tmp_path) is None
