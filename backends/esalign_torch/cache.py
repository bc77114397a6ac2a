"""A key-value cache that grows in strides, and from which finished rows leave without copying the others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from esalign.errors import BackendError

STRIDE = 8  # least number of slots to grow by


class _RowCacheLayer(DynamicLayer):
    """Keys and values of one layer, in buffers of shape (rows, heads, capacity, features).

    transformers' own layer joins the new token to the old ones by a copy of all of them at each step, and drops its
    oldest where attention slides. Here most steps write one slot and copy nothing, and sliding is left to the mask.
    """

    is_sliding = False

    def __init__(self, rows: int, most: int) -> None:
        super().__init__()
        self.filled = 0
        self.most = most
        self.window = (0, rows)
        self.rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for the first tokens, and for some more."""
        self.take_memory(key_states, value_states, capacity=min(key_states.shape[2] + STRIDE, self.most))

    def take_memory(self, key_states: Tensor, value_states: Tensor, *, capacity: int) -> None:
        """Take memory for so many slots of keys and values like the given ones."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_buffer, self.value_buffer = (
            states.new_empty(self.rows, states.shape[1], capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens behind the filled slots of the window's rows. Returns views of all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, last = self.window
        stop = self.filled + key_states.shape[2]
        if stop > self.key_buffer.shape[2]:
            self.copy_to(rows=last, capacity=min(stop + max(STRIDE, stop // 2), self.most))
        keys = self.key_buffer[first:last, :, :stop]
        values = self.value_buffer[first:last, :, :stop]
        keys[:, :, self.filled :] = key_states
        values[:, :, self.filled :] = value_states
        return keys, values

    def copy_to(self, *, rows: int, capacity: int) -> None:
        """Move the filled slots of the first rows to buffers of another size."""
        self.key_buffer = _resized(self.key_buffer, rows, capacity, self.filled)
        self.value_buffer = _resized(self.value_buffer, rows, capacity, self.filled)
        self.rows = rows

    def spread(self, sources: Tensor) -> None:
        """Have a row for each of some rows, shape (new rows,), in their place."""
        self.key_buffer, self.value_buffer = self.key_buffer[sources], self.value_buffer[sources]
        self.rows = len(sources)

    def get_seq_length(self, *_args: Any) -> int:
        """Return the number of filled slots."""
        return self.filled


class RowCache(Cache):
    """The cache of one batch of sequences, each of which ends at the last filled slot.

    Args:
        layers: number of the model's layers.
        rows: number of sequences.
        most: slots that will ever be filled.
    """

    def __init__(self, layers: int, rows: int, most: int) -> None:
        self.row_layers = [_RowCacheLayer(rows, most) for _ in range(layers)]
        super().__init__(layers=list(self.row_layers))

    @property
    def filled(self) -> int:
        """Number of filled slots, padding included."""
        return self.row_layers[0].filled

    @property
    def nbytes(self) -> int:
        """Memory of the buffers."""
        return sum(b.numel() * b.element_size() for x in self.row_layers for b in (x.key_buffer, x.value_buffer))

    def focus(self, first: int, last: int) -> None:
        """Let the next forward passes see rows first to last only."""
        for layer in self.row_layers:
            layer.window = (first, last)

    def advance(self, tokens: int) -> None:
        """Count tokens that were written into all rows as filled."""
        for layer in self.row_layers:
            layer.filled += tokens

    def begin(self, start: "RowCache", sources: Tensor, blanks: Tensor, *, room: int) -> None:
        """Fill the first slots of an empty cache from another one, whose rows hold what these rows begin with.

        Args:
            start: of it, all slots are filled.
            sources: which of its rows each row begins with, shape (rows,).
            blanks: slots of padding before each row, shape (rows,).
            room: slots that will be filled before the first tokens are chosen.
        """
        # Padding has the keys of the first slot, which the mask hides; shape (rows, start.filled).
        slots = (torch.arange(start.filled, device=blanks.device) - blanks[:, None]).clamp(min=0)
        for layer, source in zip(self.row_layers, start.row_layers, strict=True):
            capacity = min(room + STRIDE, layer.most)
            layer.take_memory(source.key_buffer, source.value_buffer, capacity=capacity)
            for own, other in ((layer.key_buffer, source.key_buffer), (layer.value_buffer, source.value_buffer)):
                # A pair of indices with a slice between them gives (rows, slots, heads, features).
                own[:, :, : source.filled] = other[sources[:, None], :, slots].transpose(1, 2)
            layer.filled = source.filled

    def spread(self, sources: Tensor) -> None:
        """Have a copy of a row for each of some rows, shape (new rows,), in their place."""
        for layer in self.row_layers:
            layer.spread(sources)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows to where rows were given up; both of shape (moved,)."""
        for layer in self.row_layers:
            for buffer in (layer.key_buffer, layer.value_buffer):
                buffer[targets, :, : layer.filled] = buffer[sources, :, : layer.filled]

    def shrink(self, rows: int) -> None:
        """Give back the memory of all but the first rows."""
        for layer in self.row_layers:
            layer.copy_to(rows=rows, capacity=layer.filled)

    @classmethod
    def join(cls, parts: Sequence[tuple["RowCache", int, int]]) -> "RowCache":
        """Make one cache of several, which are used up.

        Args:
            parts: per cache, the number of its first rows to take, and the number of its last filled slots.
        """
        to_come = max(cache.row_layers[0].most - cache.filled for cache, _, _ in parts)
        most = max(slots for _, _, slots in parts) + to_come
        joined = cls(len(parts[0][0].row_layers), sum(rows for _, rows, _ in parts), most)
        for at, layer in enumerate(joined.row_layers):
            sources = [(cache.row_layers[at], rows, slots) for cache, rows, slots in parts]
            layer.filled = max(slots for _, _, slots in parts)
            sizes = layer.filled, min(layer.filled + STRIDE, most)
            layer.key_buffer = _joined([(s.key_buffer, r, n, s.filled) for s, r, n in sources], *sizes)
            layer.value_buffer = _joined([(s.value_buffer, r, n, s.filled) for s, r, n in sources], *sizes)
            layer.dtype, layer.device = layer.key_buffer.dtype, layer.key_buffer.device
            layer.is_initialized = True
            for source, _, _ in sources:  # layer by layer, so that there is no time at which all is there twice
                del source.key_buffer, source.value_buffer
        return joined


@torch.inference_mode()
def kv_bytes(model: Any, layers: int, token: int) -> int:
    """Measure the bytes of keys and values that one token takes in all layers, by a forward pass of one token.

    Raises:
        BackendError: a layer keeps none.
    """
    cache = RowCache(layers, 1, most=1)
    ids = torch.tensor([[token]], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    without = [number for number, layer in enumerate(cache.row_layers) if not layer.is_initialized]
    if without:
        raise BackendError(
            f"layer {without[0]} of this {type(model).__name__} keeps no keys and values of its own, as recurrent ones "
            "do not, which backend 'torch' does not support"
        )
    return cache.nbytes // cache.row_layers[0].key_buffer.shape[2]


def _resized(buffer: Tensor, rows: int, capacity: int, filled: int) -> Tensor:
    larger = buffer.new_empty(rows, buffer.shape[1], capacity, buffer.shape[3])
    larger[:, :, :filled] = buffer[:rows, :, :filled]
    return larger


def _joined(parts: Sequence[tuple[Tensor, int, int, int]], filled: int, capacity: int) -> Tensor:
    """Stack buffers, given as (buffer, rows, slots, filled), so that all end at the same slot.

    The padding is zero: attention gives it no weight, but no weight times not-a-number would be not-a-number.
    """
    one = parts[0][0]
    rows = sum(count for _, count, _, _ in parts)
    joined = torch.zeros(rows, one.shape[1], capacity, one.shape[3], dtype=one.dtype, device=one.device)
    start = 0
    for buffer, count, slots, end in parts:
        joined[start : start + count, :, filled - slots : filled] = buffer[:count, :, end - slots : end]
        start += count
    return joined
