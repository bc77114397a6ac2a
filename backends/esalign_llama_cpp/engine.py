"""The model, its adapter and its context, of which the last grows with what is asked."""

from collections.abc import Sequence

from esalign.protocols import Space
from esalign.types import Array
from esalign_llama_cpp.context import CACHE_BYTES, GRANULARITY, Context, Settings
from esalign_llama_cpp.decoder import Consumer, Decoder, Group
from esalign_llama_cpp.model import GgufModel
from esalign_llama_cpp.options import DEFAULT_SEQUENCES
from esalign_llama_cpp.switch import Method, make_switch

SingularValues = list[tuple[Array, Array]]


class Engine:
    """Runs one candidate at a time.

    Args:
        model: it is closed with the engine.
        space: the frozen factors, or None.
        settings: of contexts.
        method: how to switch candidates.
        sequences: completed together; None for a default.
        context: the most tokens of a sequence; None for the model's own context.
        kv_bytes: memory for the key-value cache where sequences is None, the common beginning's included.
    """

    def __init__(
        self,
        model: GgufModel,
        space: Space | None,
        settings: Settings,
        *,
        method: Method,
        sequences: int | None,
        context: int | None,
        kv_bytes: float,
    ) -> None:
        self.model = model
        self.settings = settings
        self._limit = context or model.context
        self._fixed_context = context is not None
        self._sequences = sequences
        self._kv_bytes = kv_bytes
        self._context: Context | None = None
        self._switch = None if space is None else make_switch(space, model, method)

    def run(self, values: SingularValues, groups: Sequence[Group], consumer: Consumer, *, longest: int) -> None:
        """Feed groups to a candidate.

        Args:
            values: the candidate's singular values per module.
            groups: what to feed.
            consumer: takes the logits.
            longest: tokens of the longest sequence.
        """
        if not groups:
            return
        context = self._open_context(longest)
        if self._switch is None:  # the bare model, whose only candidate is the empty vector
            context.clear()
        else:
            self._switch.select(values, context)
        Decoder(context).run(groups, consumer)

    def _open_context(self, longest: int) -> Context:
        """Return a context for sequences of a length, making a larger one where the present one is too small."""
        if self._context is None or self._context.tokens < longest:
            self._close_context()
            tokens = self._limit if self._fixed_context else -(-longest // GRANULARITY) * GRANULARITY
            each = tokens * self.model.kv_width * CACHE_BYTES[self.settings.kv_type]
            room = min(DEFAULT_SEQUENCES, self.settings.batch - 1, int(self._kv_bytes / each) - 1)
            count = self._sequences or max(1, room)
            self._context = Context(self.model, self.settings, sequences=count + 1, tokens=tokens)
        return self._context

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None

    def close(self) -> None:
        """Free contexts, adapter and model, in this order: each uses the next."""
        self._close_context()
        if self._switch is not None:
            self._switch.close()
        self.model.close()
