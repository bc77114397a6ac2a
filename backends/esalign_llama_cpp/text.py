"""Between prompts, tokens and answers: the GGUF file's own vocabulary or a Hugging Face tokenizer, and stop strings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esalign.engines.text import TextCodec
from esalign.errors import BackendError
from esalign_llama_cpp.model import GgufModel, Vocabulary

BROKEN = "\N{REPLACEMENT CHARACTER}"


class GgufTokenizer:
    """The vocabulary and the chat template of a GGUF file, to be called as a transformers tokenizer is."""

    def __init__(self, model: GgufModel) -> None:
        self._vocabulary = Vocabulary(model)
        self.chat_template = model.chat_template

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return the ids of a text, with the special tokens that the file asks for."""
        return {"input_ids": self._vocabulary.tokenize(text, special=add_special_tokens)}

    def apply_chat_template(self, messages: list[Any], *, tokenize: bool, **variables: Any) -> str:  # noqa: ARG002
        """Return a chat as text, by the file's template; whoever calls this wants text."""
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template  # its annotation is wrong
        bos, eos = self._vocabulary.name("bos"), self._vocabulary.name("eos")
        texts, _ = render([messages], chat_template=self.chat_template, bos_token=bos, eos_token=eos, **variables)
        return str(texts[0])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:  # noqa: ARG002  (they have no text here)
        """Return the text of an answer, without control tokens."""
        pieces = self._vocabulary.pieces
        text = b"".join(pieces[token] for token in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._vocabulary.strips_blank else text


def load_tokenizer(folder: str | Path) -> Any:
    """Load a transformers tokenizer.

    Args:
        folder: where it lies, or its id on the hub.

    Raises:
        BackendError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(f"the tokenizer '{folder}' cannot be loaded: {reason}") from error


class StopStrings:
    """Finds out when an answer holds a stop string, without decoding every answer at every step.

    Only a token with the last character of a stop string in its own text can complete one. A token whose text is
    broken, blank or invisible on its own might as well, as its neighbours change what is seen of it.
    """

    def __init__(self, codec: TextCodec, stop: tuple[str, ...]) -> None:
        self._codec = codec
        self._stop = stop
        self._last = {text[-1] for text in stop}
        self._may_complete: dict[int, bool] = {}

    def completed(self, ids: Sequence[int]) -> bool:
        """Tell whether the text of an answer holds a stop string."""
        token = ids[-1]
        if token not in self._may_complete:
            piece = self._codec.decode([token])
            shown = bool(piece) and BROKEN not in piece and piece == piece.strip()
            self._may_complete[token] = not shown or not self._last.isdisjoint(piece)
        if not self._may_complete[token]:
            return False
        text = self._codec.decode(ids)
        return any(stop in text for stop in self._stop)
