"""A cluster as esalign sees it: one backend."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from esalign.config.cluster import ClusterSection
from esalign.engines.checks import opened
from esalign.engines.cluster.engine import Kind
from esalign.engines.cluster.packing import blocks, unpack
from esalign.engines.cluster.ray_workers import RayWorkers
from esalign.engines.cluster.scheduler import Scheduler
from esalign.engines.cluster.units import Unit, cut, describe
from esalign.engines.cluster.workers import WrongAnswer
from esalign.engines.turns import one_at_a_time
from esalign.errors import BackendError, EsalignWarning
from esalign.protocols import Space
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences, as_candidates

ON_GPUS, ON_CPUS = 256, 32  # fewest completions of a unit: a GPU takes nearly as long for 32 as for 256
SHOWN = 60  # characters of a prompt that is named


class ClusterBackend:
    """Many engines that are used as one. Candidates and prompts are cut into units, which go wherever a worker is free.

    Workers may die, sleep or come late: what is returned is the same, as a unit holds all that its answer depends on.
    `on_completion` is called as each unit is finished.

    Args:
        kinds: what each worker's engine is to be; one for all that fit the cluster, where the section says auto.
        space: the frozen factors; None for the bare model.
        section: how many, where, and what to do when some are missing.

    Raises:
        BackendError: there is no cluster, or too few workers come.
        EsalignError: what the engine refuses.
        MissingPackageError: Ray is not installed.
    """

    def __init__(self, kinds: Sequence[Kind], space: Space | None, section: ClusterSection) -> None:
        self.space, self._section = space, section
        self._dim = space.dim if space is not None else 0
        self._auto = section.workers == "auto" and not section.groups
        self._by_prompt = any(kind.differs(kinds[0]) for kind in kinds)
        labels = dict.fromkeys(kind.known_as for kind in kinds)
        self._labels = tuple(labels) if len(labels) > 1 else ()
        self._calls, self._encoded = count(), dict[str, tuple[int, ...]]()
        self._workers: RayWorkers | None = RayWorkers(kinds, space, address=section.address)
        self._fewest = ON_GPUS if any(self._workers.kind(number).gpus for number in range(len(kinds))) else ON_CPUS
        self._scheduler = Scheduler(
            self._workers,
            max(section.min_workers, self._workers.room()) if self._auto else len(kinds),
            least=section.min_workers,
            patience=section.wait,
            limit=section.limit,
            warn=_warn,
        )
        try:
            self._scheduler.assemble()
        except BaseException:
            self.close()
            raise

    @one_at_a_time
    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Complete every prompt with every candidate; see `esalign.protocols.Backend`."""
        workers, table = opened(self._workers), as_candidates(candidates, self._dim)
        ids = self._encode_all(prompts)
        self._check_context(ids, sampling.max_tokens)
        rows: list[list[Any]] = [[None] * len(ids) for _ in table]
        if not ids:
            return rows
        handles = [workers.share(block) for block in blocks(ids)]

        def accept(unit: Unit, answer: Any) -> int:
            completions = unpack(answer, unit, sampling.max_tokens)
            for i, row in zip(unit.candidates, completions, strict=True):
                for j, completion in zip(unit.prompts, row, strict=True):
                    rows[i][j] = completion
                    if on_completion is not None:
                        on_completion(i, j, completion)
            return len(answer.ids)

        def ask(unit: Unit) -> Any:
            here = replace(sampling, offset=sampling.offset + unit.prompts.start)
            vectors = table[unit.candidates.start : unit.candidates.stop]
            return "generate", vectors, unit.places, here, *handles[unit.blocks.start : unit.blocks.stop]

        def name(unit: Unit) -> str:
            longest = max(unit.prompts, key=lambda j: len(ids[j]))
            return f"{describe(unit)} (the longest of {len(ids[longest])} tokens: {prompts[longest]!r:.{SHOWN}})"

        units = self._cut(len(table), len(ids))
        self._scheduler.run([replace(unit, request=ask(unit)) for unit in units], accept, name)
        return rows

    @one_at_a_time
    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the teacher-forced log-probabilities of given completions; see `esalign.protocols.Backend`."""
        opened(self._workers)
        table = as_candidates(candidates, self._dim)
        rows: list[list[Any]] = [[None] * len(sequences) for _ in table]

        def ask(unit: Unit) -> Any:
            part = slice(unit.prompts.start, unit.prompts.stop)
            wanted = None if support is None else list(support[part])
            vectors = table[unit.candidates.start : unit.candidates.stop]
            return "score", vectors, list(sequences[part]), wanted, part.start

        def accept(unit: Unit, answer: Any) -> int:
            _check_scores(unit, answer, [len(sequences[j][1]) for j in unit.prompts])
            for i, row in zip(unit.candidates, answer, strict=True):
                rows[i][unit.prompts.start : unit.prompts.stop] = row
            return sum(len(table) for row in answer for table in row)

        units = self._cut(len(table), len(sequences))
        self._scheduler.run([replace(unit, request=ask(unit)) for unit in units], accept)
        return rows

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids that the engines feed for a prompt."""
        return self.encode_all([prompt])[0]

    @one_at_a_time
    def encode_all(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Return the token ids of prompts, which takes as long as one of them.

        Raises:
            BackendError: what the engine refuses.
        """
        opened(self._workers)
        return self._encode_all(prompts)

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its completion."""
        return opened(self._workers).context

    def measure(self) -> dict[str, float]:
        """Return how many workers there are, of each kind where there are several, their speed, and what happened."""
        told = self._scheduler.measure()
        if self._labels and self._workers is not None:
            ready = [self._workers.kind(worker).known_as for worker in self._scheduler.ready]
            told |= {f"workers_of_{label}": float(ready.count(label)) for label in self._labels}
        return told

    @one_at_a_time
    def close(self) -> None:
        """End all workers. Calling it twice is harmless."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _cut(self, candidates: int, prompts: int) -> list[Unit]:
        """Cut a call, for as many workers as there are to be."""
        if self._auto:
            self._scheduler.resize(max(self._section.min_workers, opened(self._workers).room()))
        return cut(
            candidates,
            prompts,
            workers=self._section.cut_for or self._scheduler.size,
            fewest=self._section.unit or self._fewest,
            by_prompt=self._by_prompt,
            call=next(self._calls),
        )

    def _encode_all(self, prompts: Any) -> list[tuple[int, ...]]:
        """Encode prompts, those that are new by a worker.

        Raises:
            BackendError: what the engine refuses.
        """
        if isinstance(prompts, str | bytes | dict):
            raise BackendError(f"prompts is of type {type(prompts).__name__}, expected a list of prompts")
        keys = [_key(prompt) for prompt in prompts]
        new = {key: j for j, key in enumerate(keys) if key not in self._encoded}
        if new:
            request = ("encode", [(j, prompts[j]) for j in new.values()])

            def accept(_unit: Unit, answer: Any) -> int:
                if not isinstance(answer, list) or len(answer) != len(new):
                    raise WrongAnswer(f"{answer!r:.80} where {len(new)} encoded prompts were expected")
                self._encoded.update(zip(new, answer, strict=True))
                return 0

            self._scheduler.run(
                [Unit((next(self._calls), 0), range(0), range(0), request)], accept, lambda _: "a prompt"
            )
        return [self._encoded[key] for key in keys]

    def _check_context(self, ids: Sequence[tuple[int, ...]], tokens: int) -> None:
        for j, one in enumerate(ids):
            if self.context is not None and len(one) + tokens > self.context:
                raise BackendError(
                    f"prompt {j} has {len(one)} tokens and its completion may have {tokens}, but the engines have a "
                    f"context of {self.context}: shorten the prompt or lower max_tokens"
                )


def _key(prompt: Any) -> str:
    """Return what tells a prompt from others."""
    try:
        return json.dumps(
            prompt, default=lambda value: value.__index__() if hasattr(value, "__index__") else repr(value)
        )
    except (TypeError, ValueError):
        return repr(prompt)


def _warn(text: str) -> None:
    warnings.warn(text, EsalignWarning, stacklevel=3)


def _check_scores(unit: Unit, answer: Any, lengths: Sequence[int]) -> None:
    """Refuse what can be no log-probabilities of sequences of such lengths.

    Raises:
        WrongAnswer: another shape or type, or numbers that are no log-probabilities.
    """
    shape = [len(row) if isinstance(row, list) else -1 for row in answer] if isinstance(answer, list) else None
    if shape != [len(lengths)] * len(unit.candidates):
        raise WrongAnswer(f"{answer!r:.80} where scores of {len(lengths)} sequences were expected")
    for row in answer:
        for table, length in zip(row, lengths, strict=True):
            if not isinstance(table, np.ndarray) or table.dtype.kind != "f" or table.shape[:1] != (length,):
                raise WrongAnswer(f"{table!r:.80} where log-probabilities of {length} tokens were expected")
            if not (np.isfinite(table).all() and (table <= 1e-3).all()):
                raise WrongAnswer("log-probabilities that are above 0 or no numbers")
