"""One model's side of decoding in lock-step: one token per sequence and step; sequences that end leave the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # tokens fed so far, (sequences,)
        width = int(lengths.max())
        # Prompts stand at the right, so that the newest token of all is in one column; shape (sequences, width).
        self._ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        self._lengths = lengths
        # What attention may see, shape (sequences, slots of the cache): all but the padding. None where there is no
        # padding: without a mask, transformers can leave causality to the attention kernel.
        self._mask: Tensor | None = None
        if bool((lengths < width).any()):
            self._mask = (torch.arange(width, device=device) >= (width - lengths)[:, None]).long()

    def read(self) -> Tensor:
        """Read the prompts. Returns the logits of the next token, shape (sequences, rows of the head)."""
        width = self._ids.shape[1]
        # Positions count from a prompt's first token, whatever stands before it; shape (sequences, width).
        positions = torch.arange(width, device=self._ids.device)[None] - (width - self._lengths)[:, None]
        return self._forward(self._ids, positions.clamp_min(0))

    def feed(self, tokens: Tensor) -> Tensor:
        """Feed one token to each sequence, shape (sequences,). Returns the logits of the next."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = self._lengths[:, None]  # the first position is 0, so the next one is the count; (sequences, 1)
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
