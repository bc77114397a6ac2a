"""What runs in each worker: one engine, which says what it is, and answers in plain values.

What an engine raises comes back as a value, too: not all exceptions survive the way from one process to another.
"""

import importlib.metadata
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from esalign.engines.cluster.lifeline import Address, hold_on
from esalign.engines.cluster.packing import Blocked, open_block, pack
from esalign.errors import EsalignError
from esalign.protocols import Backend, BoundedBackend, PackagedBackend, Space
from esalign.registry import BACKENDS, entry_point, load_backend
from esalign.types import Array, Sampling

GOLDEN = ("The sum of 12 and 30 is 42, and that of 7 and 9 is", "Once upon a time there was a")
GOLDEN_SPREAD = 0.3  # standard deviation of the search vector that is scored beside zero


@dataclass(frozen=True)
class Kind:
    """How a worker's engine is made.

    Args:
        name: the engine's.
        model: the base model.
        dtype: compute type.
        device: where it computes.
        options: the engine's own.
        gpus: GPUs that a worker takes; None for 1 where there are GPUs and device is not cpu, else 0.
        cpus: CPU cores that a worker takes.
        label: what people call workers of this kind; empty for the engine's name.
    """

    name: str
    model: str
    dtype: str = "auto"
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    gpus: float | None = None
    cpus: float = 1.0
    label: str = ""

    @property
    def known_as(self) -> str:
        """What people call workers of this kind."""
        return self.label or self.name

    def differs(self, other: "Kind") -> bool:
        """Say whether another engine may round differently, of which label, cores and GPUs are no sign."""
        return replace(self, gpus=other.gpus, cpus=other.cpus, label=other.label) != other


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself before it may answer.

    Args:
        kind: the engine's name.
        versions: of esalign, of the package that the engine comes in, and of what it computes with.
        fingerprint: of the space.
        context: the most tokens of a prompt and its completion.
        ids: what the golden texts are encoded as.
        scores: their log-probabilities at zero and at a random search vector, shape (2, tokens).
        host: the machine.
        pid: the process.
    """

    kind: str
    versions: Mapping[str, str]
    fingerprint: str
    context: int | None
    ids: tuple[tuple[int, ...], ...]
    scores: Array
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Done:
    """An answer."""

    value: Any


@dataclass(frozen=True)
class Refused:
    """An error that esalign raises on purpose: the name of its class, and its text."""

    kind: str
    text: str


@dataclass(frozen=True)
class Broken:
    """Any other error, after which the engine's state is unknown."""

    text: str


Answer = Done | Refused | Broken


class Engine:
    """One engine; Ray makes an actor of this class."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def begin(self, kind: Kind, space: Space | None, lifeline: Address | None) -> Answer:
        """Load the engine and let it say what it is. It ends with the process at the other end of the line."""
        if lifeline is not None:
            hold_on(lifeline)
        return _guarded(lambda: self._begin(kind, space))

    def generate(self, candidates: Array, places: range, sampling: Sampling, *blocks: Blocked) -> Answer:
        """Complete prompts with candidates; where the prompts are in the blocks, one after another, is their places."""
        ids = [one for block in blocks for one in open_block(block)]
        return _guarded(lambda: pack(self._opened.generate(candidates, ids[places.start : places.stop], sampling)))

    def score(self, candidates: Array, sequences: Any, support: Any, first: int) -> Answer:
        """Score completions, of which errors name the first by its number."""
        return _guarded(lambda: self._score(candidates, sequences, support, first))

    def encode(self, prompts: Any) -> Answer:
        """Encode prompts, given as pairs of a number, which errors name, and the prompt."""
        return _guarded(lambda: self._encode(prompts))

    def close(self) -> None:
        """Free what the engine holds."""
        if self._backend is not None:
            self._backend.close()

    @property
    def _opened(self) -> Backend:
        if self._backend is None:
            raise RuntimeError("the engine was not loaded")
        return self._backend

    def _begin(self, kind: Kind, space: Space | None) -> Hello:
        settings: dict[str, Any] = {"model": kind.model, "space": space, "dtype": kind.dtype, "device": kind.device}
        self._backend = backend = load_backend(kind.name, **settings, **kind.options)
        ids = tuple(backend.encode(text) for text in GOLDEN)
        dim = space.dim if space is not None else 0
        rng = np.random.default_rng(0)
        scores = backend.score(
            np.stack([np.zeros(dim), GOLDEN_SPREAD * rng.standard_normal(dim)]), [(one[:1], one[1:]) for one in ids]
        )
        return Hello(
            kind=kind.name,
            versions=_versions(kind.name, backend),
            fingerprint=space.fingerprint if space is not None else "",
            context=backend.context if isinstance(backend, BoundedBackend) else None,
            ids=ids,
            scores=np.stack([np.concatenate(row) for row in scores]),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def _score(self, candidates: Array, sequences: Any, support: Any, first: int) -> list[list[Array]]:
        try:
            return self._opened.score(candidates, sequences, support)
        except EsalignError as error:
            told = re.sub(r"\b(sequence|support) (\d+)", lambda at: f"{at[1]} {int(at[2]) + first}", str(error))
            raise type(error)(told) from error

    def _encode(self, prompts: Any) -> list[tuple[int, ...]]:
        encoded = []
        for j, prompt in prompts:
            try:
                encoded.append(self._opened.encode(prompt))
            except EsalignError as error:
                raise type(error)(str(error).replace("the prompt", f"prompt {j}", 1)) from error
        return encoded


def _guarded(work: Callable[[], Any]) -> Answer:
    try:
        return Done(work())
    except EsalignError as error:
        return Refused(type(error).__name__, str(error))
    except Exception as error:  # noqa: BLE001  (whatever an engine raises; the driver decides what follows)
        return Broken(" ".join(f"{type(error).__name__}: {error}".split())[:500])


def _versions(name: str, backend: Backend) -> dict[str, str]:
    """Return the versions of esalign, of what offers the engine, and of what the engine computes with."""
    found = {"esalign": importlib.metadata.version("esalign")}
    dist = entry_point(BACKENDS, name).dist
    packages = backend.packages if isinstance(backend, PackagedBackend) else ()
    for package in (*packages, *([dist.name] if dist is not None else [])):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
