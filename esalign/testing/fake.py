"""An engine of numpy alone, for tests of whatever needs an engine: it starts at once and writes a token in 20 us."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from esalign.engines.checks import as_asked, check_choice, check_positive, check_sequences, opened
from esalign.engines.encoding import Encoding
from esalign.engines.sampling import choose, seed_sequence
from esalign.engines.text import TextCodec
from esalign.protocols import Space
from esalign.types import Array, Completion, Message, OnCompletion, Prompt, Sampling, Sequences, as_candidates

END = 256  # the token that ends a completion; those below are the bytes of UTF-8
VOCAB = 257
WIDTH = 16
FADE = 0.8

Completions: TypeAlias = Mapping[str, str] | Callable[[Array, str], str | None]
"""What is written: {prompt: completion}, or a function of (search vector of shape (dim,), prompt)."""


class FakeBackend(Encoding):
    """A tiny language model over bytes, which can be told what to write.

    Its random weights read the prompt, and a candidate shifts its hidden state; so completions differ with prompt and
    candidate, and are nonsense. Where ``completions`` knows the prompt, the next byte of that completion is made the
    likeliest: greedy completions are then as told, sampled ones mostly. `generate` and `score` go by one distribution.

    It takes any space, of which it wants ``dim`` alone, and computes in float64. A completion depends on its candidate,
    its prompt and the sampling, and on nothing else, bit by bit.

    Args:
        model: any name: the weights come from the seed.
        space: the search space; None for candidates of shape (population, 0).
        dtype: ``"auto"`` or ``"float32"``, as all engines can.
        device: ``"auto"`` or ``"cpu"``.
        completions: what is written; prompts that it does not know, or for which it returns None, are left to the
            random weights. Chats and ids are looked up by the text that they are fed as.
        confidence: how much likelier the byte to be written is than any other, in nats, above 0.
        context: the most tokens of a prompt and its completion.
        seed: of the weights.

    Raises:
        BackendError: a dtype, device or confidence that it has not.

    >>> backend = FakeBackend("any", completions={"2 + 2 =": " 4"})
    >>> backend.generate(np.zeros((1, 0)), ["2 + 2 ="], Sampling())
    [[Completion(text=' 4', token_ids=(32, 52, 256), finish_reason='stop', logprob=None)]]
    """

    def __init__(
        self,
        model: str | Path,
        space: Space | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        completions: Completions | None = None,
        confidence: float = 6.0,
        context: int = 4096,
        seed: int = 0,
    ) -> None:
        check_choice("dtype", dtype, ("auto", "float32"))
        check_choice("device", device, ("auto", "cpu"))
        check_positive("confidence", confidence)
        self.label = str(model)
        self.dim = space.dim if space is not None else 0
        self._completions = completions
        self._confidence = confidence
        self._codec = TextCodec(
            ByteTokenizer(),
            vocab=VOCAB,
            ends={END},
            context=context,
            chat_template_kwargs=None,
            label=f"model '{model}'",
        )
        self._engine: _ByteModel | None = _ByteModel(self.dim, seed)

    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Complete every prompt with every candidate; see `esalign.protocols.Backend`."""
        opened(self._engine)
        table = as_candidates(candidates, self.dim)
        encoded = self._codec.encode_prompts(prompts, sampling.max_tokens)
        rows: list[list[Completion]] = []
        for i, candidate in enumerate(table):
            rows.append([])
            for j, ids in enumerate(encoded):
                rows[i].append(self._complete(candidate, ids, sampling, j))
                if on_completion is not None:
                    on_completion(i, j, rows[i][j])
        return rows

    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the teacher-forced log-probabilities of given completions; see `esalign.protocols.Backend`."""
        opened(self._engine)
        given = check_sequences(self._codec, sequences, support)
        rows = [[self._score(candidate, *one) for one in given] for candidate in as_candidates(candidates, self.dim)]
        return as_asked(rows, support)

    def close(self) -> None:
        """Free the weights. Calling it twice is harmless."""
        self._engine = None

    def _complete(self, candidate: Array, prompt: tuple[int, ...], sampling: Sampling, j: int) -> Completion:
        """Complete prompt j, shape (dim,) being the candidate's."""
        writing = Writing(opened(self._engine), candidate, prompt, self._told(candidate, prompt), self._confidence)
        uniforms = np.full(sampling.max_tokens, np.nan)
        if sampling.draws(j):
            stream = np.random.default_rng(seed_sequence(sampling.seed, sampling.offset + j))
            uniforms = stream.random(sampling.max_tokens)
        logprob = 0.0
        for uniform in uniforms:
            logits = writing.logits()
            token = choose(logits, sampling, float(uniform))
            logprob += float(logits[token] - np.logaddexp.reduce(logits))
            writing.append(token)
            text = self._codec.decode(writing.ids)
            if writing.ids[-1] == END or any(stop in text for stop in sampling.stop):
                break
        return self._codec.complete(writing.ids, sampling.stop, logprob if sampling.logprob else None)

    def _score(self, candidate: Array, prompt: tuple[int, ...], completion: tuple[int, ...], wanted: Array) -> Array:
        """Return the log-probabilities of the wanted ids (tokens, k) at each place of a completion, float32."""
        writing = Writing(opened(self._engine), candidate, prompt, self._told(candidate, prompt), self._confidence)
        scores = np.empty(wanted.shape, dtype=np.float32)
        for place, token in enumerate(completion):
            logits = writing.logits()
            scores[place] = (logits - np.logaddexp.reduce(logits))[wanted[place]]
            writing.append(token)
        return scores

    def _told(self, candidate: Array, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids that are to be written for a prompt, none where nothing is told."""
        if self._completions is None:
            return ()
        text = self._codec.decode(prompt)
        found = (
            self._completions(candidate.copy(), text) if callable(self._completions) else self._completions.get(text)
        )
        return () if found is None else (*found.encode(), END)


class ByteTokenizer:
    """The tokenizer of the fake: the bytes of UTF-8. It offers what `TextCodec` asks of a transformers tokenizer."""

    chat_template = "the turns of a chat in one line each, as role: content"

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return the ids of a text; there are no special tokens to add."""
        del add_special_tokens
        return {"input_ids": list(text.encode("utf-8", errors="replace"))}

    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: bool = False, add_generation_prompt: bool = True
    ) -> Any:
        """Return a chat as text, or as ids."""
        turns = [f"{message['role']}: {message['content']}" for message in messages]
        text = "\n".join([*turns, "assistant:"] if add_generation_prompt else turns)
        return self(text)["input_ids"] if tokenize else text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids; the end has none."""
        del skip_special_tokens
        return bytes(token for token in ids if token < END).decode("utf-8", errors="replace")


class _ByteModel:
    """Random weights. ``logits = (tanh(h) + x P) O + b``, where h fades and adds each token's embedding, x a candidate.

    Args:
        dim: length of a candidate.
        seed: of the weights.
    """

    def __init__(self, dim: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.embedding = rng.standard_normal((VOCAB, WIDTH))
        self.output = rng.standard_normal((WIDTH, VOCAB))
        self.direction = rng.standard_normal((dim, WIDTH)) / np.sqrt(max(dim, 1))
        self.bias = np.full(VOCAB, -24.0)  # most bytes alone are no text
        self.bias[32:127] = 0.0
        self.bias[END] = 3.0


class Writing:
    """A completion under way.

    Args:
        model: the weights.
        candidate: shape (dim,).
        prompt: ids, already read.
        told: the ids that are to be written, none to leave it to the weights.
        confidence: how much likelier the next of them is made than any other, in nats.
    """

    def __init__(
        self, model: _ByteModel, candidate: Array, prompt: tuple[int, ...], told: tuple[int, ...], confidence: float
    ) -> None:
        self.ids: list[int] = []
        self._model, self._told, self._confidence = model, told, confidence
        self._shift = candidate @ model.direction
        self._hidden = np.zeros(WIDTH)
        for token in prompt:
            self._read(token)

    def append(self, token: int) -> None:
        """Write a token; one that is not as told ends the telling."""
        if self._told[len(self.ids) : len(self.ids) + 1] != (token,):
            self._told = ()
        self.ids.append(token)
        self._read(token)

    def logits(self) -> Array:
        """Return what the model says of the next token, shape (vocab,), float64."""
        logits: Array = (np.tanh(self._hidden) + self._shift) @ self._model.output + self._model.bias
        if len(self.ids) < len(self._told):
            logits[self._told[len(self.ids)]] = logits.max() + self._confidence
        return logits

    def _read(self, token: int) -> None:
        self._hidden = FADE * self._hidden + self._model.embedding[token]
