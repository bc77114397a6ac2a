"""What transformers and peft say: the completions and scores that every engine is held to."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from esalign.engines.loading import LoadedModel, load_model
from esalign.protocols import Space
from esalign.types import Array


class Reference:
    """A model in float32 on the CPU, with each candidate folded into a plain PEFT adapter.

    Args:
        model: folder or Hugging Face id.
        space: the space of the candidates.
    """

    def __init__(self, model: str | Path, space: Space) -> None:
        self.space = space
        self._loaded = load_model("model", str(model), dtype="float32", device="cpu")
        self.tokenizer: Any = self._loaded.tokenizer
        self.ends = set(self._loaded.ends)

    @property
    def vocab(self) -> int:
        """Number of ids that both the model and the tokenizer know."""
        return min(int(self._loaded.model.config.get_text_config().vocab_size), len(self.tokenizer))

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its completion."""
        return int(self._loaded.model.config.get_text_config().max_position_embeddings)

    def complete(self, candidate: Array, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return the greedy completions of one candidate, shape (dim,), the closing token included."""
        with self._adapted(candidate) as loaded:
            return loaded.complete(prompts, max_tokens)

    def log_probabilities(self, candidate: Array, prompt: Sequence[int], completion: Sequence[int]) -> Array:
        """Return the log-probabilities of all tokens at each place of a completion, shape (tokens, vocab), float32."""
        with self._adapted(candidate) as loaded:
            table: Array = loaded.log_probabilities(prompt, completion).numpy()
        return table

    @contextmanager
    def _adapted(self, candidate: Array) -> Iterator[LoadedModel]:
        """Lend the model with a candidate's adapter on it."""
        from peft import PeftModel

        with tempfile.TemporaryDirectory() as folder:
            self.space.save_pretrained(np.asarray(candidate), folder)
            adapted = PeftModel.from_pretrained(self._loaded.model, folder).eval()
        try:
            yield replace(self._loaded, model=adapted)
        finally:
            self._loaded = replace(self._loaded, model=adapted.unload())
