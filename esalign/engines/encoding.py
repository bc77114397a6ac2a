"""What all engines with a text codec do alike: encode prompts, and say how much they read."""

from typing import Any

from esalign.engines.checks import opened
from esalign.engines.text import TextCodec
from esalign.engines.turns import one_at_a_time
from esalign.types import Prompt


class Encoding:
    """`encode` and `context` of a backend with its codec in ``_codec``, and None in ``_engine`` once it is closed."""

    _codec: TextCodec
    _engine: Any

    @one_at_a_time
    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids that the engine feeds for a prompt."""
        opened(self._engine)
        return self._codec.encode(prompt)

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its completion."""
        return self._codec.context
