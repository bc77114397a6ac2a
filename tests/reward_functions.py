"""Rewards that the tests load by path and by module, well behaved and not."""

import asyncio
import math
import os
import signal
import sys
import time
from pathlib import Path


def length(completions, **_):
    return [float(len(completion)) for completion in completions]


def misbehaving(completions, **_):
    """Do what the completion says."""
    return [_obey(completion) for completion in completions]


def _obey(completion):  # noqa: C901  (a flat list of misdeeds)
    match completion:
        case "hang":
            while True:
                sum(range(1000))
        case "hang in C":
            return float(9**9**9)
        case "sleep":
            time.sleep(600)
        case "raise":
            raise KeyError("no such thing")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancel":
            raise asyncio.CancelledError
        case "hang on":
            try:
                time.sleep(600)
            except BaseException:  # noqa: BLE001  (as careless rewards do)
                time.sleep(600)
        case "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(600)
        case "die":
            os._exit(1)
        case "nan":
            return math.nan
        case "infinity":
            return math.inf
        case "abstain":
            return None
        case "print":
            sys.stdout.write("tears the dashboard")
            sys.stdout.flush()
            return 1.0
        case "process":
            return float(os.getpid())
        case "torch":
            return float("torch" in sys.modules)
    return float(completion)


def die_once(completions, marker, **_):
    """Kill the process the first time, as a system short of memory might."""
    if not Path(marker[0]).exists():
        Path(marker[0]).touch()
        os._exit(1)
    return [1.0 for _ in completions]


def too_many(completions, **_):
    return [1.0] * (len(completions) + 1)


def words(completions, **_):
    return ["good" for _ in completions]


def one_number(completions, **_):
    return 1.0


def a_mapping(completions, **_):
    return dict.fromkeys(completions, 1.0)


def a_set(completions, **_):
    return {1.0 for _ in completions}


def some_bytes(completions, **_):
    return b"1" * len(completions)


def of_chats(completions, **_):
    """Score as TRL's rewards for chats do."""
    return [float(completion[0]["content"] == "4") for completion in completions]


def of_texts(completions: list[str], **_):
    return [float(completion == "4") for completion in completions]


def by_tokens(completions, completion_ids, trainer_state):
    """Show what a run gives beside texts, as TRL does."""
    return [len(ids) + 100.0 * trainer_state.global_step + trainer_state.max_steps / 1000 for ids in completion_ids]


def with_columns(completions, budget: int = 200, **columns):
    return [float(budget) for _ in completions]


def with_answer(completions, answer, budget=200):
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def mentions_the_answer(completions, answer):
    return [float(right in completion) for completion, right in zip(completions, answer, strict=True)]


def says_any_number(completions, answer):
    return [float(any(char.isdigit() for char in completion)) for completion in completions]


def short(completions):
    return [float(-len(completion)) for completion in completions]


def first_word(completions):
    return [float(completion.split()[0] == "The") for completion in completions]


async def asynchronous(completions, **_):
    return [1.0 for _ in completions]


def compute_nothing(solution_str, ground_truth):
    return {"reward": 1.0}


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """Score as verl's functions do."""
    bonus = (extra_info or {}).get("bonus", 0)
    return {"score": float(solution_str == ground_truth) + bonus, "source": data_source}


class Judge:
    """A reward with a state, made once in each process."""

    def __init__(self, *, scale=1.0):
        self.scale = scale

    def __call__(self, completions, **_):
        return [self.scale * len(completion) for completion in completions]


NUMBER = 3
