"""Completing one batch of sequences, each with its own candidate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esalign.engines.stops import StopStrings
from esalign.engines.text import TextCodec
from esalign.types import Completion, Sampling
from esalign_torch.cache import RowCache
from esalign_torch.lora import SingularValues
from esalign_torch.sampling import choose, log_probabilities

SHARED, LEAST_SHARED = 0.25, 256
"""Share of a batch's prompt tokens, and their number, that must be saved for the start that all of its prompts have in
common to be read once for each candidate, not once for each row: that takes a pass of its own."""


class Row(NamedTuple):
    """One completion to be found: candidate's index, prompt's index, and the prompt's ids."""

    candidate: int
    prompt: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """What decoding and scoring need of the backend.

    Args:
        model: the causal language model with its wrapped layers.
        values: the table that the wrapped layers read.
        codec: ids to text.
        device: where the model is.
        pad: id that fills short prompts; it is never attended to.
        layers: number of the model's layers.
        shares_starts: whether a prompt may be read in two passes.
    """

    model: Any
    values: SingularValues
    codec: TextCodec
    device: torch.device
    pad: int
    layers: int
    shares_starts: bool


@dataclass(frozen=True)
class Request:
    """What all rows of a call share.

    Args:
        sampling: how to decode.
        table: singular values of all candidates, shape (population, width).
        uniforms: the prompts' random numbers, shape (prompts, max_tokens), NaN where a prompt is completed greedily, or
            (prompts, 0) where all are.
        stops: finder of stop strings, or None.
        may_complete: which ids may complete a stop string, shape (vocab,), bool; None without stop strings.
        ends: ids that end a completion, shape (ends,).
    """

    sampling: Sampling
    table: Tensor
    uniforms: Tensor
    stops: StopStrings | None
    may_complete: Tensor | None
    ends: Tensor


@dataclass
class _RowTables:
    """What is known of each row; the first dimension of every table is rows.

    Args:
        values: singular values, shape (rows, width).
        uniforms: random numbers, shape (rows, max_tokens) or (rows, 0).
        tokens: generated ids, shape (rows, max_tokens).
        counts: how many ids were generated, shape (rows,).
        lengths: how many tokens are in the cache, shape (rows,).
        logprobs: log-probability of the generated ids, float64, shape (rows,); zero where nobody asks for it.
    """

    values: Tensor
    uniforms: Tensor
    tokens: Tensor
    counts: Tensor
    lengths: Tensor
    logprobs: Tensor

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows to where rows were given up; both of shape (moved,)."""
        for field in fields(self):
            table = getattr(self, field.name)
            table[targets] = table[sources]

    @classmethod
    def join(cls, parts: Sequence[tuple["_RowTables", int]]) -> "_RowTables":
        """Stack tables, of each its first rows."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(tables, name)[:rows] for tables, rows in parts]) for name in names})


class Batch:
    """Sequences that are decoded together, one token per step; those that finish leave at once.

    Rows below ``live`` are in use. Where sequences finish, the last live ones move in. Make one by `read` or `join`.

    Args:
        engine: the model and its companions.
        request: what the rows share.
        rows: what to complete.
        tables: what is known of the rows.
        cache: their keys and values.
    """

    def __init__(
        self, engine: Engine, request: Request, *, rows: Sequence[Row], tables: _RowTables, cache: RowCache
    ) -> None:
        self.engine = engine
        self.request = request
        self.rows = list(rows)
        self.tables = tables
        self.cache = cache
        self.live = len(rows)
        self.even = bool((tables.lengths == tables.lengths[0]).all())

    @classmethod
    @torch.inference_mode()
    def read(cls, engine: Engine, request: Request, rows: Sequence[Row], most_tokens: int) -> "Batch":
        """Start a batch by reading its prompts, at most so many tokens in one pass."""
        lengths = torch.tensor([len(row.ids) for row in rows], device=engine.device)
        candidates, prompts = (torch.tensor([row[at] for row in rows], device=engine.device) for at in (0, 1))
        tables = _RowTables(
            values=request.table[candidates],
            uniforms=request.uniforms[prompts],
            tokens=lengths.new_zeros(len(rows), request.sampling.max_tokens),
            counts=torch.zeros_like(lengths),
            lengths=lengths,
            logprobs=torch.zeros(len(rows), dtype=torch.float64, device=engine.device),
        )
        distinct = list({(row.candidate, row.ids): row for row in rows}.values())
        cache = RowCache(engine.layers, len(distinct), int(lengths.max()) + request.sampling.max_tokens)
        batch = cls(engine, request, rows=rows, tables=tables, cache=cache)
        batch._read_prompts(distinct, most_tokens)
        return batch

    @classmethod
    @torch.inference_mode()
    def join(cls, parts: Sequence["Batch"]) -> "Batch":
        """Make one batch of the live rows of several, which are used up."""
        slots = [int(part.tables.lengths[: part.live].max()) for part in parts]
        cache = RowCache.join([(part.cache, part.live, n) for part, n in zip(parts, slots, strict=True)])
        tables = _RowTables.join([(part.tables, part.live) for part in parts])
        rows = [row for part in parts for row in part.rows[: part.live]]
        return cls(parts[0].engine, parts[0].request, rows=rows, tables=tables, cache=cache)

    @torch.inference_mode()
    def shrink(self) -> None:
        """Give back the memory that finished rows held."""
        self.cache.shrink(self.live)

    def run(self, until: int) -> Iterator[tuple[Row, Completion]]:
        """Decode until no more than so many rows are live, and yield the completions as they finish."""
        if self.live and not int(self.tables.counts[0]):
            yield from self._release(self._first)
        self._show_values()
        while self.live > until:
            yield from self._release(self._step())

    def _read_prompts(self, prompts: Sequence[Row], most_tokens: int) -> None:
        """Fill the cache with the prompts, and choose the first tokens.

        Args:
            prompts: one row of each different prompt of each candidate.
            most_tokens: read in one pass, at most.
        """
        device, table = self.engine.device, self.request.table
        values = table[torch.tensor([row.candidate for row in prompts], device=device)]
        lengths = torch.tensor([len(row.ids) for row in prompts], device=device)
        width = int(lengths.max())
        # Prompts stand at the right, so that all rows write their next token into one slot; shape (prompts, width).
        padded = torch.tensor([[self.engine.pad] * (width - len(x)) + list(x) for _, _, x in prompts], device=device)
        slots = torch.arange(width, device=device)[None]  # (1, width)
        known = self._read_common_start(prompts, width - lengths, most_tokens)
        places = {(row.candidate, row.ids): at for at, row in enumerate(prompts)}
        sources = torch.tensor([places[row.candidate, row.ids] for row in self.rows], device=device)  # (rows,)
        repeated = len(prompts) < self.live
        self._first = torch.empty_like(sources)
        for part in _parts(len(prompts), most_tokens // (width - known)):
            self.cache.focus(part.start, part.stop)
            self.engine.values.show(values[part])
            blank = width - lengths[part, None]  # slots of padding before each prompt, (prompts, 1)
            mask = None if self.even else slots >= blank
            # A position counts from the prompt's first token, whatever padding stands before it; (prompts, width).
            positions = slots if self.even else (slots - blank).clamp(min=0)
            logits = self._forward(padded[part, known:], mask, positions[:, known:], self.cache)
            rows: slice | Tensor = part
            if repeated:
                rows = ((sources >= part.start) & (sources < part.stop)).nonzero()[:, 0]
                logits = logits[sources[rows] - part.start]
            self._first[rows] = self._choose(logits, rows)
        self.cache.advance(width - known)
        if repeated:
            self.cache.spread(sources)

    def _read_common_start(self, prompts: Sequence[Row], blanks: Tensor, most_tokens: int) -> int:
        """Read what all prompts begin with, once for each candidate. Returns how many slots of every prompt that fills.

        Templates, instructions and examples make that a large part of many prompts. Prompts stand at the right, so in
        these slots a shorter one has padding, and less of the common start: it reads the rest of it itself.

        Args:
            prompts: one row of each different prompt of each candidate.
            blanks: slots of padding before each, shape (prompts,).
            most_tokens: read in one pass, at most.
        """
        ids, device = [row.ids for row in prompts], self.engine.device
        width = max(map(len, ids))
        common = min(common_start(ids), min(map(len, ids)) - 1)  # one token is left to read, for its logits
        places = {candidate: at for at, candidate in enumerate(dict.fromkeys(row.candidate for row in prompts))}
        saved = common * (len(prompts) - len(places))
        if not self.engine.shares_starts or saved < max(LEAST_SHARED, SHARED * len(prompts) * width):
            return 0
        values = self.request.table[torch.tensor(list(places), device=device)]  # (candidates, width of the table)
        start = RowCache(self.engine.layers, len(places), common)
        tokens, slots = torch.tensor([ids[0][:common]], device=device), torch.arange(common, device=device)[None]
        for part in _parts(len(places), most_tokens // common):
            start.focus(part.start, part.stop)
            self.engine.values.show(values[part])
            self._forward(tokens.expand(part.stop - part.start, -1), None, slots, start)
        start.advance(common)
        sources = torch.tensor([places[row.candidate] for row in prompts], device=device)
        self.cache.begin(start, sources, blanks, room=width)
        return common

    @torch.inference_mode()
    def _step(self) -> Tensor:
        """Feed the newest tokens. Returns the next ones, shape (live,)."""
        live, tables, filled = self.live, self.tables, self.cache.filled
        newest = tables.tokens[:live].gather(1, tables.counts[:live, None] - 1)  # (live, 1)
        lengths = tables.lengths[:live, None]  # also the position of the newest token, the first being 0; (live, 1)
        # The last ``length`` filled slots are the row's own, and the one that is written now; (live, filled + 1).
        mask = None if self.even else torch.arange(filled + 1, device=lengths.device)[None] >= filled - lengths
        logits = self._forward(newest, mask, lengths[:1] if self.even else lengths, self.cache)
        self.cache.advance(1)
        tables.lengths[:live] += 1
        return self._choose(logits, slice(0, live))

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: RowCache) -> Tensor:
        """Return the logits behind the last token of each row, shape (rows, vocab)."""
        output = self.engine.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _choose(self, logits: Tensor, part: slice | Tensor) -> Tensor:
        tables, uniforms = self.tables, self.tables.uniforms[part]
        if uniforms.shape[1]:
            chosen = choose(logits, self.request.sampling, uniforms.gather(1, tables.counts[part, None])[:, 0])
        else:
            chosen = logits.argmax(dim=-1)
        if self.request.sampling.logprob:
            tables.logprobs[part] += log_probabilities(logits, chosen)
        return chosen

    def _show_values(self) -> None:
        """Let the adapted layers and the cache see the live rows."""
        self.engine.values.show(self.tables.values[: self.live])
        self.cache.focus(0, self.live)

    @torch.inference_mode()
    def _release(self, chosen: Tensor) -> list[tuple[Row, Completion]]:
        """Note the newest tokens. Returns the completions that they finish, and closes the ranks of the others."""
        tables = self.tables
        counts = tables.counts[: self.live]
        tables.tokens[: self.live].scatter_(1, counts[:, None], chosen[:, None])  # row by row at its own count
        counts += 1
        finished = self._finished(chosen, counts)
        if not finished:
            return []
        logprobs = tables.logprobs[finished].tolist() if self.request.sampling.logprob else [None] * len(finished)
        completions = zip(tables.tokens[finished].tolist(), counts[finished].tolist(), logprobs, strict=True)
        done = [(self.rows[at], ids[:count], p) for at, (ids, count, p) in zip(finished, completions, strict=True)]
        self._close_ranks(finished)
        return [(row, self.engine.codec.complete(ids, self.request.sampling.stop, p)) for row, ids, p in done]

    def _finished(self, chosen: Tensor, counts: Tensor) -> list[int]:
        """Return the sorted places of the rows that are finished."""
        stops = self.request.stops
        ended = torch.isin(chosen, self.request.ends) | (counts == self.request.sampling.max_tokens)
        places: list[int] = ended.nonzero()[:, 0].tolist()
        if stops is None or self.request.may_complete is None:
            return places
        suspects: list[int] = (~ended & self.request.may_complete[chosen]).nonzero()[:, 0].tolist()
        texts = zip(self.tables.tokens[suspects].tolist(), counts[suspects].tolist(), strict=True)
        stopped = [at for at, (ids, count) in zip(suspects, texts, strict=True) if stops.completed(ids[:count])]
        return sorted(places + stopped)

    def _close_ranks(self, finished: list[int]) -> None:
        """Move the last live rows to the places of finished ones."""
        live = self.live - len(finished)
        gone = set(finished)
        # As many live rows lie behind the new border as finished ones before it, so that one copy each is enough.
        sources = [at for at in range(live, self.live) if at not in gone]
        targets = [at for at in finished if at < live]
        self.live = live
        if targets:
            for source, target in zip(sources, targets, strict=True):
                self.rows[target] = self.rows[source]
            source_index, target_index = (torch.tensor(x, device=self.engine.device) for x in (sources, targets))
            self.tables.move(source_index, target_index)
            self.cache.move(source_index, target_index)
        self._show_values()


def _parts(total: int, most: int) -> Iterator[slice]:
    """Cut so many rows into parts of at most the given size, or of one."""
    for first in range(0, total, max(1, most)):
        yield slice(first, min(first + max(1, most), total))


def common_start(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return how many ids all sequences begin with.

    >>> common_start([(1, 2, 3), (1, 2), (1, 2, 4)])
    2
    """
    first, last = min(sequences), max(sequences)  # all others lie between these two
    differ = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(differ, min(len(first), len(last)))
