"""What transformers and peft say: the completions and scores that every engine is held to."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from esalign.engines.loading import LoadedModel, load_model
from esalign.protocols import Space
from esalign.space.imports import import_peft
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
        self._vector: Array | None = None  # whose adapter the model has

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
        return self._adapted(candidate).complete(prompts, max_tokens)

    def log_probabilities(self, candidate: Array, prompt: Sequence[int], completion: Sequence[int]) -> Array:
        """Return the log-probabilities of all tokens at each place of a completion, shape (tokens, vocab), float32."""
        table: Array = self._adapted(candidate).log_probabilities(prompt, completion).numpy()
        return table

    def _adapted(self, candidate: Array) -> LoadedModel:
        """Return the model with a candidate's adapter on it, which stays until another candidate is asked for."""
        vector = np.asarray(candidate, dtype=np.float64)
        if self._vector is None or not np.array_equal(vector, self._vector):
            base = self._loaded.model if self._vector is None else self._loaded.model.unload()
            with tempfile.TemporaryDirectory() as folder:
                self.space.save_pretrained(vector, folder)
                self._loaded = replace(self._loaded, model=import_peft().PeftModel.from_pretrained(base, folder).eval())
            self._vector = vector.copy()
        return self._loaded
