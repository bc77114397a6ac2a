"""A key-value cache whose memory is taken once, and from which finished rows leave without copying the others."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RowCacheLayer(DynamicLayer):
    """Keys and values of one layer, in buffers of shape (rows, heads, capacity, features).

    transformers' own layer joins the new token to the old ones by a copy of all of them at each step, and drops its
    oldest where attention slides. Here a step writes one slot, and sliding is left to the mask.
    """

    is_sliding = False

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0
        self.window = (0, rows)
        self.rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory, in the shape of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_buffer, self.value_buffer = (
            states.new_empty(self.rows, states.shape[1], self.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens behind the filled slots of the window's rows. Returns views of all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, last = self.window
        stop = self.filled + key_states.shape[2]
        keys = self.key_buffer[first:last, :, :stop]
        values = self.value_buffer[first:last, :, :stop]
        keys[:, :, self.filled :] = key_states
        values[:, :, self.filled :] = value_states
        return keys, values

    def get_seq_length(self, *_args: Any) -> int:
        """Return the number of filled slots."""
        return self.filled


class RowCache(Cache):
    """The cache of one batch of sequences.

    Args:
        layers: number of the model's layers.
        rows: number of sequences.
        capacity: the most tokens of a sequence, padding included.
    """

    def __init__(self, layers: int, rows: int, capacity: int) -> None:
        self.row_layers = [RowCacheLayer(rows, capacity) for _ in range(layers)]
        super().__init__(layers=list(self.row_layers))

    def focus(self, first: int, last: int) -> None:
        """Let the next forward passes see rows first to last only."""
        for layer in self.row_layers:
            layer.window = (first, last)

    def advance(self, tokens: int) -> None:
        """Count tokens that were written into all rows as filled."""
        for layer in self.row_layers:
            layer.filled += tokens

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows to where rows were given up; both of shape (moved,)."""
        for layer in self.row_layers:
            for buffer in (layer.key_buffer, layer.value_buffer):
                buffer[targets, :, : layer.filled] = buffer[sources, :, : layer.filled]

    @property
    def nbytes(self) -> int:
        """Memory of the buffers."""
        return sum(b.numel() * b.element_size() for x in self.row_layers for b in (x.key_buffer, x.value_buffer))
