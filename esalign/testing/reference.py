"""What transformers and peft say: the completions and scores that every engine is held to."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from esalign.engines.loading import keep_soft_cap
from esalign.protocols import Space
from esalign.types import Array


class Reference:
    """A model in float32 on the CPU, with each candidate folded into a plain PEFT adapter.

    Args:
        model: folder or Hugging Face id.
        space: the space of the candidates.
    """

    def __init__(self, model: str | Path, space: Space) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.space = space
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        keep_soft_cap(self._model)
        configured = self._model.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        self.ends = {token for token in (*listed, self.tokenizer.eos_token_id) if token is not None}

    @property
    def vocab(self) -> int:
        """Number of ids that both the model and the tokenizer know."""
        return min(int(self._model.config.get_text_config().vocab_size), len(self.tokenizer))

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its completion."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    def complete(self, candidate: Array, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return the greedy completions of one candidate, shape (dim,), the closing token included."""
        import torch

        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        with self._adapted(candidate) as model:
            output = model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=sorted(self.ends),
                pad_token_id=0,
            )
        return [self._cut(row) for row in output[:, width:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        """Return a completion up to its closing token, without the padding behind it."""
        ends = [at + 1 for at, token in enumerate(ids) if token in self.ends]
        return ids[: ends[0]] if ends else ids

    def log_probabilities(self, candidate: Array, prompt: Sequence[int], completion: Sequence[int]) -> Array:
        """Return the log-probabilities of all tokens at each place of a completion, shape (tokens, vocab), float32."""
        import torch

        ids = torch.tensor([[*prompt, *completion]])
        with self._adapted(candidate) as model, torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        table: Array = logits.float().log_softmax(dim=-1).numpy()
        return table

    @contextmanager
    def _adapted(self, candidate: Array) -> Iterator[Any]:
        """Lend the model with a candidate's adapter on it."""
        from peft import PeftModel

        with tempfile.TemporaryDirectory() as folder:
            self.space.save_pretrained(np.asarray(candidate), folder)
            adapted = PeftModel.from_pretrained(self._model, folder).eval()
        try:
            yield adapted
        finally:
            self._model = adapted.unload()
