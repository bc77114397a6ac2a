"""Decoding in lock-step: one token per sequence and step; sequences that end leave the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def decode(
    decoders: "Sequence[Decoder]",
    choose: "Callable[[Sequence[Tensor], Tensor, int], Tensor]",
    ended: Callable[[Tensor, Tensor], Tensor],
    *,
    sequences: int,
    max_tokens: int,
) -> None:
    """Decode sequences with one or several models, which are all fed the same tokens.

    Args:
        decoders: one per model, on one device, with the same sequences.
        choose: gets each model's logits, the live sequences' numbers, shape (live,), and the count of tokens so far;
            returns the next token of each, shape (live,).
        ended: gets the live sequences' numbers and newest tokens; tells which end with it, shape (live,), bool.
        sequences: their number, at least 1.
        max_tokens: the most tokens of a sequence, at least 1.
    """
    logits = [decoder.read() for decoder in decoders]
    live = torch.arange(sequences, device=logits[0].device)
    for at in range(max_tokens):
        tokens = choose(logits, live, at)
        going = (~ended(live, tokens)).nonzero()[:, 0]
        if not len(going) or at + 1 == max_tokens:
            return
        if len(going) < len(live):
            live, tokens = live[going], tokens[going]
            for decoder in decoders:
                decoder.keep(going)
        logits = [decoder.feed(tokens) for decoder in decoders]


class Decoder:
    """One causal language model's side: it reads prompts, is fed tokens, and lets go of sequences.

    Args:
        model: a causal language model of transformers, with or without PEFT adapters.
        prompts: token ids, each at least one.
        pad: the id that fills shorter prompts, on the left; it is never attended to.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, pad: int = 0) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config)
        device = model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        width = int(lengths.max())
        self._ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        self._lengths = lengths
        self._mask: Tensor | None = None
        if bool((lengths < width).any()):
            self._mask = (torch.arange(width, device=device) >= (width - lengths)[:, None]).long()

    def read(self) -> Tensor:
        """Read the prompts. Returns the logits of the next token, shape (sequences, rows of the head)."""
        width = self._ids.shape[1]
        positions = torch.arange(width, device=self._ids.device)[None] - (width - self._lengths)[:, None]
        return self._forward(self._ids, positions.clamp_min(0))

    def feed(self, tokens: Tensor) -> Tensor:
        """Feed one token to each sequence, shape (sequences,). Returns the logits of the next."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = self._lengths[:, None]
        self._lengths = self._lengths + 1
        return self._forward(tokens[:, None], positions)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only, by their places, shape (kept,)."""
        self._cache.batch_select_indices(rows)
        self._lengths = self._lengths[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits
