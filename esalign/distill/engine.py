"""The student as an engine, so that held-out evaluation judges it as it judges any other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esalign.distill.decoder import Decoder, decode
from esalign.distill.forced import answer_logits, in_batches, pick
from esalign.distill.models import Loaded, encode
from esalign.distill.rollout import draw, draw_uniforms
from esalign.distill.vocabulary import SharedVocabulary
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences


class StudentEngine:
    """A `Backend` with one candidate, the student as it is; its search vectors have no entries.

    Args:
        student: the model, which may go on learning between calls.
        vocabulary: of both models, so that the student is judged on the tokens that it learns.
        sequences: answers decoded together.
        batch_tokens: the most tokens scored in one pass.
        max_prompt_tokens: of a prompt.
    """

    def __init__(
        self,
        student: Loaded,
        vocabulary: SharedVocabulary,
        *,
        sequences: int = 64,
        batch_tokens: int = 4096,
        max_prompt_tokens: int = 1024,
    ) -> None:
        self._student, self._vocabulary = student, vocabulary
        self._sequences, self._batch_tokens, self._max_prompt = sequences, batch_tokens, max_prompt_tokens

    @torch.no_grad()
    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt; all candidates are the same model."""
        ids = [self.encode(prompt) for prompt in prompts]
        uniforms = draw_uniforms(sampling.seed, len(prompts), sampling.max_tokens) if sampling.temperature else None
        row: list[Completion] = []
        for first in range(0, len(ids), self._sequences):
            part = slice(first, first + self._sequences)
            row += self._answer(ids[part], sampling, None if uniforms is None else uniforms[part])
        rows = [row] * len(candidates)
        if on_completion is not None:
            for i, completions in enumerate(rows):
                for j, completion in enumerate(completions):
                    on_completion(i, j, completion)
        return rows

    def _answer(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, uniforms: Tensor | None
    ) -> list[Completion]:
        answers: list[list[int]] = [[] for _ in prompts]

        def choose(logits: Sequence[Tensor], live: Tensor, at: int) -> Tensor:
            logprobs = restrict(self._vocabulary.logprobs(logits[0]), sampling)
            column = None if uniforms is None else uniforms.to(logprobs.device)[live, at]
            tokens = logprobs.argmax(dim=-1) if column is None else draw(logprobs, column)
            for row, token in zip(live.tolist(), tokens.tolist(), strict=True):
                answers[row].append(token)
            return tokens

        def ended(live: Tensor, tokens: Tensor) -> Tensor:
            ends = tokens == (-1 if self._vocabulary.end is None else self._vocabulary.end)
            if sampling.stop:
                texts = [self._text(answers[row]) for row in live.tolist()]
                ends |= torch.tensor(
                    [any(stop in text for stop in sampling.stop) for text in texts], device=ends.device
                )
            return ends

        decoders = [Decoder(self._student.model, prompts)]
        decode(decoders, choose, ended, sequences=len(prompts), max_tokens=sampling.max_tokens)
        return [self._complete(answer, sampling) for answer in answers]

    def _complete(self, answer: list[int], sampling: Sampling) -> Completion:
        finished = answer[-1] == self._vocabulary.end
        text = self._text(answer)
        cut = min((at for at in map(text.find, sampling.stop) if at >= 0), default=None)
        return Completion(text[:cut], tuple(answer), "stop" if finished or cut is not None else "length")

    def _text(self, answer: Sequence[int]) -> str:
        ids = answer[:-1] if answer[-1] == self._vocabulary.end else answer
        text: str = self._student.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @torch.no_grad()
    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Return log-probabilities of answers, or of a support at each of their tokens; alike for all candidates."""
        row: list[Array] = [np.zeros(0, np.float32)] * len(sequences)
        for places in in_batches(sequences, self._batch_tokens):
            logits = answer_logits(self._student.model, pick(sequences, places))
            parts = logits.split([len(sequences[place][1]) for place in places])
            for place, part in zip(places, parts, strict=True):
                wanted = np.asarray(sequences[place][1])[:, None] if support is None else np.asarray(support[place])
                ids = torch.from_numpy(wanted.astype(np.int64)).to(part.device)
                scores = self._vocabulary.logprobs(part).gather(-1, ids).float().cpu().numpy()
                row[place] = scores[:, 0] if support is None else scores
        return [row] * len(candidates)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids that both models read for a prompt."""
        return encode(self._student, prompt, max_tokens=self._max_prompt)

    def close(self) -> None:
        """Nothing to free: the trainer owns the model."""


def restrict(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Return the log-probabilities to draw from, not normalised: temperature, then top-k, then the nucleus."""
    if not sampling.temperature:
        return logprobs
    logprobs = logprobs / sampling.temperature
    if 0 < sampling.top_k < logprobs.shape[-1]:
        least = logprobs.topk(sampling.top_k, dim=-1).values[..., -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -float("inf"))
    if sampling.top_p < 1.0:
        ordered, order = logprobs.log_softmax(dim=-1).sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()
        outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logprobs = logprobs.masked_fill(outside, -float("inf"))
    return logprobs
