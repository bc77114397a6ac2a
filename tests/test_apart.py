"""Functions called in a fresh process: what comes back, whatever becomes of the process."""

import json
import os

import pytest

from esalign.config.reading import parse_override
from esalign.errors import BackendError
from esalign.run.apart import call_apart


def test_a_function_called_apart_returns_what_it_returns_here():
    assert call_apart(parse_override, text="a.b=[1, 2.5]") == {"a": {"b": [1, 2.5]}}
    assert call_apart(os.getpid) != os.getpid()


def test_what_this_process_has_changed_does_not_reach_it(monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_: "changed")
    monkeypatch.setattr("esalign.run.apart.json.dumps", lambda *_: '{"text": "a=1"}')
    assert call_apart(parse_override, text="a=1") == {"a": 1}


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (parse_override, {"text": "none"}, "cannot read the override 'none', expected section.key=value"),
        (json.loads, {"s": "{"}, "process of transformers and peft failed: json.decoder.JSONDecodeError: Expecting"),
        (os.abort, {}, "process of transformers and peft was killed by signal 6: out of memory?"),
        (os._exit, {"status": 3}, "process of transformers and peft failed: no word"),
        (os.times, {"none": 1}, "failed: TypeError"),
    ],
)
def test_however_it_ends_the_error_is_one_line(function, arguments, message):
    with pytest.raises(BackendError) as error:
        call_apart(function, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
