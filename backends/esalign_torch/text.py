"""Finding stop strings in answers that are still being decoded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esalign.engines.text import TextCodec

BROKEN = "\N{REPLACEMENT CHARACTER}"


class StopStrings:
    """Finds out when an answer holds a stop string, without decoding every answer at every step.

    Only a token with the last character of a stop string in its own text can complete one. A token whose text is
    broken or invisible on its own (part of a character, a special token) might as well.
    """

    def __init__(self, codec: TextCodec, stop: tuple[str, ...], device: torch.device) -> None:
        self.codec = codec
        self.stop = stop
        self.may_complete = self._mark_tokens().to(device)

    def _mark_tokens(self) -> Tensor:
        """Return which ids may complete a stop string, shape (vocab,), bool."""
        last = {stop[-1] for stop in self.stop}
        if " " in last:  # decoders strip the blank before a word that stands alone
            return torch.ones(self.codec.vocab, dtype=torch.bool)
        pieces = self.codec.tokenizer.batch_decode([[token] for token in range(self.codec.vocab)])
        marks = [not piece or BROKEN in piece or not last.isdisjoint(piece) for piece in pieces]
        return torch.tensor(marks)

    def completed(self, ids: Sequence[int]) -> bool:
        """Tell whether the text of an answer holds a stop string."""
        text = self.codec.decode(ids)
        return any(stop in text for stop in self.stop)
