"""Models and data of the Hugging Face hub where there is no network: one clear line, soon."""

import http.server
import os
import socket
import threading
import time

import pytest
from huggingface_hub import constants
from quick_runs import write_quick_run

from esalign.commands import hub
from esalign.commands.hub import find_hub
from esalign.config.sft import SftConfig
from esalign.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, an endpoint where nobody listens, and settings that are as before afterwards."""
    for module, name in ((constants, "HF_HUB_CACHE"), (constants, "ENDPOINT"), (constants, "HF_HUB_OFFLINE")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    return tmp_path / "cache"


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__path": "nobody/model"}, "model.path is 'nobody/model', which is no local file or folder"),
        ({"model__adapter": "nobody/adapter"}, "model.adapter is 'nobody/adapter'"),
        ({"data__source": "nobody/data"}, "data.source is 'nobody/data'"),
        ({"data__test": {"source": "nobody/data"}}, "data.test.source is 'nobody/data'"),
        ({"fitness__options": {"teacher": "nobody/teacher"}}, "fitness.options.teacher is 'nobody/teacher'"),
    ],
    ids=str,
)
def test_what_is_neither_local_nor_cached_is_told_in_one_line(tmp_path, changes, told):
    with pytest.raises(ConfigError) as caught:
        find_hub(write_quick_run(tmp_path, **changes))
    assert str(caught.value).startswith(told)
    assert "cannot be reached: check the path, or the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_warm_start_is_told_too(tmp_path):
    config = SftConfig(model="nobody/model", out=str(tmp_path / "out"), data={"source": str(tmp_path / "data.jsonl")})
    with pytest.raises(ConfigError, match="model is 'nobody/model'"):
        find_hub(config)


def test_a_hub_that_never_answers_is_waited_for_no_longer_than_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(ConfigError, match="cannot be reached"):
            find_hub(write_quick_run(tmp_path, model__path="nobody/model"))
    assert time.monotonic() - began < 5


def test_what_is_cached_is_taken_from_there_without_asking_again(tmp_path, cache):
    (cache / "models--nobody--model").mkdir(parents=True)
    find_hub(write_quick_run(tmp_path, model__path="nobody/model"))
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_answers_whatever_is_asked_by_its_libraries(tmp_path, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    find_hub(write_quick_run(tmp_path, model__path="nobody/model"))
    server.server_close()
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("path", ["fake", "{folder}/adapter", "embedded", "/no/such/model", "./no/model"])
def test_nothing_is_asked_for_what_is_not_of_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.setattr(hub, "_answers", lambda _: pytest.fail("asked"))
    find_hub(write_quick_run(tmp_path, model__path=path.replace("{folder}", str(tmp_path))))
