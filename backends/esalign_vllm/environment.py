"""What vLLM reads from the environment, and what it leaves behind in the process."""

import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""Logs off but for errors (torch's native one, if torch is not imported yet), and no usage statistics sent out."""

CHATTY_LOGGERS = ("torch._library.triton", "torch.utils._pytree", "torchao")

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""On CPUs: the engine in this process, and its threads on any core."""


@contextmanager
def defaults(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables that are not set, for as long as the context lasts."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name, value in missing.items():
            if os.environ.get(name) == value:
                del os.environ[name]


@contextmanager
def quietly() -> Iterator[None]:
    """Keep from users what imports of vLLM and torchao say of features that nobody asked for."""
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    with defaults(QUIET), warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def preserved_process() -> Iterator[None]:
    """Undo what an engine does to the process that it runs in: it seeds global generators, blocks torch's threads."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  (vLLM seeds the global one)
    set_num_threads = torch.set_num_threads
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_num_threads
