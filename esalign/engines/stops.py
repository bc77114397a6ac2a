"""Finding stop strings in completions that are still being decoded."""

from collections.abc import Sequence

from esalign.engines.text import TextCodec

BROKEN = "\N{REPLACEMENT CHARACTER}"


class StopStrings:
    """Finds out when a completion holds a stop string, without decoding every completion at every step.

    Only a token with the last character of a stop string in its own text can complete one. A token whose text is
    broken, blank or invisible on its own (part of a character, a special token) might as well, as its neighbours change
    what is seen of it. Decoders strip the blank before a word that stands alone, so a blank may be in any token.

    Args:
        codec: of the model.
        stop: the strings.
    """

    def __init__(self, codec: TextCodec, stop: tuple[str, ...]) -> None:
        self._codec = codec
        self._stop = stop
        self._special = codec.shows_special(stop)
        self._last = {text[-1] for text in stop}
        self._known: dict[int, bool] = {}

    def may_complete(self, token: int) -> bool:
        """Tell whether a token may complete a stop string."""
        if " " in self._last:
            return True
        if token not in self._known:
            piece = self._codec.decode([token])
            shown = bool(piece.strip()) and BROKEN not in piece
            self._known[token] = not shown or not self._last.isdisjoint(piece)
        return self._known[token]

    def completed(self, ids: Sequence[int]) -> bool:
        """Tell whether the text of a completion holds a stop string."""
        text = self._codec.decode(ids, special=self._special)
        return any(stop in text for stop in self._stop)
