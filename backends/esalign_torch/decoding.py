"""Answering one batch of sequences, each with its own candidate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esalign.types import Completion, Sampling
from esalign_torch.cache import RowCache
from esalign_torch.lora import SingularValues
from esalign_torch.sampling import choose
from esalign_torch.text import StopStrings, TextCodec


class Row(NamedTuple):
    """One answer to be found: candidate's index, prompt's index, and the prompt's ids."""

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
    """

    model: Any
    values: SingularValues
    codec: TextCodec
    device: torch.device
    pad: int
    layers: int


class Batch:
    """Sequences that are decoded together, one token per step; those that finish leave at once.

    Row ``i < live`` of every table belongs to one sequence. Where sequences finish, the last live ones move in.

    Args:
        engine: the model and its companions.
        rows: what to answer.
        table: singular values of all candidates, shape (population, width).
        sampling: how to decode.
        uniforms: the prompts' random numbers, shape (prompts, max_tokens), or None.
        stops: finder of stop strings, or None.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Sequence[Row],
        table: Tensor,
        *,
        sampling: Sampling,
        uniforms: Tensor | None,
        stops: StopStrings | None,
    ) -> None:
        self.engine = engine
        self.sampling = sampling
        self.stops = stops
        self.rows = list(rows)
        device = engine.device
        lengths = torch.tensor([len(row.ids) for row in rows])
        self.width = int(lengths.max())
        self.padded = bool((lengths != self.width).any())
        capacity = self.width + sampling.max_tokens
        ids = [[engine.pad] * (self.width - len(row.ids)) + list(row.ids) for row in rows]
        self.prompts = torch.tensor(ids, device=device)
        self.lengths = lengths.to(device)
        self.mask = torch.arange(capacity, device=device) >= (self.width - self.lengths)[:, None]
        self.values = table[torch.tensor([row.candidate for row in rows], device=device)]
        order = torch.tensor([row.prompt for row in rows], device=device)
        self.uniforms = None if uniforms is None else uniforms[order]
        self.tokens = torch.zeros(len(rows), sampling.max_tokens, dtype=torch.long, device=device)
        self.ends = torch.tensor(sorted(engine.codec.ends), dtype=torch.long, device=device)
        self.cache = RowCache(engine.layers, len(rows), capacity)
        self.live = len(rows)

    def run(self, prefill_tokens: int) -> Iterator[tuple[Row, Completion]]:
        """Yield the answers as they finish.

        Args:
            prefill_tokens: the most prompt tokens to read in one pass.
        """
        chosen = self._read_prompts(max(1, prefill_tokens // self.width))
        yield from self._release(chosen, 0)
        for step in range(1, self.sampling.max_tokens):
            if not self.live:
                return
            yield from self._release(self._step(step), step)

    @torch.inference_mode()
    def _read_prompts(self, most: int) -> Tensor:
        """Fill the cache with the prompts, at most so many rows at a time. Returns the first tokens."""
        chosen = []
        for first in range(0, self.live, most):
            last = min(first + most, self.live)
            self.cache.focus(first, last)
            self.engine.values.rows = self.values[first:last]
            mask = self.mask[first:last, : self.width] if self.padded else None
            positions = torch.arange(self.width, device=self.engine.device)[None]
            if mask is not None:
                positions = (positions - (self.width - self.lengths[first:last, None])).clamp(min=0)
            logits = self._forward(self.prompts[first:last], mask, positions)
            chosen.append(self._choose(logits, first, last, 0))
        self.cache.advance(self.width)
        return torch.cat(chosen)

    @torch.inference_mode()
    def _step(self, step: int) -> Tensor:
        """Feed the last tokens. Returns the next."""
        live = self.live
        self.cache.focus(0, live)
        self.engine.values.rows = self.values[:live]
        filled = self.width + step - 1
        mask = self.mask[:live, : filled + 1] if self.padded else None
        positions = self.lengths[:live, None] + (step - 1) if self.padded else self.lengths[:1, None] + (step - 1)
        logits = self._forward(self.tokens[:live, step - 1 : step], mask, positions)
        self.cache.advance(1)
        return self._choose(logits, 0, live, step)

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Return the logits behind the last token of each row, shape (rows, vocab)."""
        output = self.engine.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _choose(self, logits: Tensor, first: int, last: int, step: int) -> Tensor:
        uniforms = None if self.uniforms is None else self.uniforms[first:last, step]
        return choose(logits, self.sampling, uniforms)

    @torch.inference_mode()
    def _release(self, chosen: Tensor, step: int) -> list[tuple[Row, Completion]]:
        """Return the answers that the newest tokens finish, and close the ranks of the others."""
        self.tokens[: self.live, step] = chosen
        finished = self._finished(chosen, step)
        if not finished:
            return []
        answers = self.tokens[finished, : step + 1].tolist()
        done = [(self.rows[at], ids) for at, ids in zip(finished, answers, strict=True)]
        self._close_ranks(finished)
        return [(row, self.engine.codec.complete(ids, self.sampling.stop)) for row, ids in done]

    def _finished(self, chosen: Tensor, step: int) -> list[int]:
        """Return the sorted places of the rows that are finished."""
        if step + 1 == self.sampling.max_tokens:
            return list(range(self.live))
        ended = torch.isin(chosen, self.ends)
        if self.stops is None:
            return ended.nonzero()[:, 0].tolist()
        suspects = (~ended & self.stops.may_complete[chosen]).nonzero()[:, 0].tolist()
        texts = self.tokens[suspects, : step + 1].tolist()
        stopped = [at for at, ids in zip(suspects, texts, strict=True) if self.stops.completed(ids)]
        return sorted(ended.nonzero()[:, 0].tolist() + stopped)

    def _close_ranks(self, finished: list[int]) -> None:
        """Move the last live rows to the places of finished ones."""
        live = self.live - len(finished)
        gone = set(finished)
        sources = [at for at in range(live, self.live) if at not in gone]
        targets = [at for at in finished if at < live]
        self.live = live
        if not targets:
            return
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        source_index, target_index = (torch.tensor(x, device=self.engine.device) for x in (sources, targets))
        tables = [self.values, self.tokens, self.lengths, self.mask]
        for table in [*tables, self.uniforms] if self.uniforms is not None else tables:
            table[target_index] = table[source_index]
        self.cache.move(source_index, target_index)


@torch.inference_mode()
def kv_bytes(engine: Engine) -> int:
    """Measure the bytes of keys and values that one token takes in all layers, by a forward pass of one token."""
    cache = RowCache(engine.layers, 1, 1)
    ids = torch.tensor([[engine.pad]], device=engine.device)
    engine.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache.nbytes
