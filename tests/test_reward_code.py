"""Rewards go to machines that lack their files."""

import py_compile
import shutil
import subprocess
import sys

import pytest

from esalign.errors import RewardError
from esalign.rewards import load_reward
from esalign.rewards.code import pack_with_code

SCRIPT = """
import functools
from dataclasses import dataclass

from beside import weight


@dataclass
class Note:
    text: str


@functools.lru_cache
def judge_one(text, scale):
    from deep.er.late import added

    return scale * weight(Note(text).text) + added


def judge(completions, scale: float = 1.0):
    return [judge_one(text, scale) for text in completions]
"""
ELSEWHERE = """
import pickle, sys
rewards = pickle.load(sys.stdin.buffer)
print([reward(prompts=["p"], completions=["four"]) for reward in rewards])
"""


def score_elsewhere(packed, folder):
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=packed, capture_output=True, cwd=folder, check=True)
    return done.stdout.decode().strip()


def write_rewards(folder):
    """Write a file, what it imports from beside it, and another file of that name."""
    files = {
        "judging.py": SCRIPT,
        "beside.py": "def weight(text):\n    return len(text) / 8\n",
        "deep/er/late.py": "added = 10\n",
        "other/judging.py": "def judge(completions):\n    return [7.0 for _ in completions]\n",
        "sent_package/__init__.py": "from sent_package.inner import judge\n",
        "sent_package/inner.py": "def judge(completions):\n    return [8.0 for _ in completions]\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_files_and_modules_of_the_user_are_sent_with_what_they_import(tmp_path, monkeypatch):
    code, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    write_rewards(code)
    elsewhere.mkdir()
    monkeypatch.syspath_prepend(code)
    named = [f"{code}/judging.py:judge", f"{code}/other/judging.py:judge", "sent_package:judge"]
    rewards = [load_reward(named[0], scale=2.0), *map(load_reward, named[1:]), load_reward("exact-match")]
    packed = pack_with_code(rewards[:3])
    with monkeypatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        shutil.rmtree(code)
        assert score_elsewhere(packed, elsewhere) == "[[11.0], [7.0], [8.0]]"
    assert b"exact" in pack_with_code(rewards[3:])
    assert len(pack_with_code(rewards[3:])) < 500, "what is installed is sent by its name alone"


def test_what_cannot_be_sent_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RewardError, match=r"a function of this process and cannot be sent to other machines: put it"):
        pack_with_code([load_reward(lambda completions: [1.0 for _ in completions])])
    (tmp_path / "compiled_reward.py").write_text("def judge(completions):\n    return [1.0 for _ in completions]\n")
    compiled = tmp_path / "lib" / "compiled_reward.pyc"
    py_compile.compile(str(tmp_path / "compiled_reward.py"), str(compiled))
    monkeypatch.syspath_prepend(tmp_path / "lib")
    with pytest.raises(RewardError, match=r"as '.*compiled_reward.pyc' is no Python source: install it on all"):
        pack_with_code([load_reward("compiled_reward:judge")])
