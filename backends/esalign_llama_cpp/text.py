"""The GGUF file's own vocabulary, as a tokenizer."""

import json
from collections.abc import Sequence
from typing import Any

from esalign_llama_cpp.model import GgufModel, Vocabulary
from esalign_llama_cpp.vocabulary import NORMALIZER

KNOWN_NORMALIZERS = {"qwen2": {"type": "NFC"}}
"""What is done to texts first, by ``tokenizer.ggml.pre``: GGUF has no place for it, and llama.cpp leaves it out."""


class GgufTokenizer:
    """The vocabulary and the chat template of a GGUF file, to be called as a transformers tokenizer is."""

    def __init__(self, model: GgufModel) -> None:
        self._vocabulary = Vocabulary(model)
        self.chat_template = model.chat_template
        self._normalizer = _find_normalizer(model)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return the ids of a text, with the special tokens that the file asks for."""
        normal = text if self._normalizer is None else self._normalizer.normalize_str(text)
        return {"input_ids": self._vocabulary.tokenize(normal, special=add_special_tokens)}

    def apply_chat_template(self, messages: list[Any], *, tokenize: bool, **variables: Any) -> str:  # noqa: ARG002
        """Return a chat as text, by the file's template; whoever calls this wants text."""
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template  # its annotation is wrong
        bos, eos = self._vocabulary.name("bos"), self._vocabulary.name("eos")
        texts, _ = render([messages], chat_template=self.chat_template, bos_token=bos, eos_token=eos, **variables)
        return str(texts[0])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of a completion, with or without control tokens."""
        pieces = self._vocabulary.pieces if skip_special_tokens else self._vocabulary.shown_pieces
        text = b"".join(pieces[token] for token in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._vocabulary.strips_blank else text


def _find_normalizer(model: GgufModel) -> Any:
    """Return what changes texts before they are cut into tokens, such as Unicode's form NFC; None for nothing."""
    written = model.metadata(NORMALIZER, "")
    wanted = json.loads(written) if written else KNOWN_NORMALIZERS.get(model.metadata("tokenizer.ggml.pre", ""))
    if wanted is None:
        return None
    from tokenizers import Tokenizer

    empty = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    return Tokenizer.from_str(json.dumps({**empty, "normalizer": wanted})).normalizer
