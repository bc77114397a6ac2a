"""The engine as esalign sees it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from esalign.engines.text import TextCodec
from esalign.errors import BackendError
from esalign.space import SvdLora
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences, as_candidates
from esalign_torch.batches import Limits, make_limits
from esalign_torch.cache import kv_bytes
from esalign_torch.decoding import Engine, Request, Row
from esalign_torch.loading import DTYPES, load_model
from esalign_torch.lora import SingularValues, attach
from esalign_torch.sampling import draw_uniforms
from esalign_torch.scheduling import answer_all
from esalign_torch.scoring import PositionPicker, ScoreRow, cut_scoring, score_batch
from esalign_torch.text import StopStrings


class TorchBackend:
    """Runs all candidates on all prompts as one batch over one copy of the weights.

    It takes any causal language model of transformers whose adapted layers are linear and whose layers remember keys
    and values (no recurrent ones). Text prompts are tokenised with the special tokens that the tokenizer itself adds;
    chats are rendered by its template, which brings its own.

    The same call gives the same answers, bit by bit. Other batches (another population, other prompts beside) round
    differently, in float32 by about 1e-6 of a logit, which can tip a token that was as good as tied.

    Args:
        model: folder or Hugging Face id.
        space: the frozen factors; None for the bare model, with candidates of shape (population, 0).
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the checkpoint's own.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU where there is one.
        quantization: None, ``"int8"`` or ``"int4"`` base weights (needs torchao); the update stays in dtype.
        memory_gb: memory for batches, in GB; None for half of what the machine has beside the weights.
        max_rows: the most sequences decoded together; None for 512 on a CPU, and what fits on a GPU.
        threads: CPU threads of the whole process; None leaves torch's setting.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
        attn_implementation: as in transformers; None for its choice.
        trust_remote_code: run code that comes with the model.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        BackendError: the model cannot be loaded, or the space is of another model.
        MissingPackageError: quantisation without torchao.
    """

    def __init__(
        self,
        model: str | Path,
        space: SvdLora | None = None,
        *,
        dtype: str = "float32",
        device: str = "auto",
        quantization: Literal["int8", "int4"] | None = None,
        memory_gb: float | None = None,
        max_rows: int | None = None,
        threads: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        _check_options(dtype=dtype, quantization=quantization, memory_gb=memory_gb, max_rows=max_rows, threads=threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self.label = str(model)
        if self.label.endswith(".gguf"):
            raise BackendError(f"'{model}' is a GGUF model, which backend 'torch' does not read: use 'llama-cpp'")
        self.space = space
        target = _find_device(device)
        loaded, tokenizer = load_model(
            self.label,
            dtype=dtype,
            device=target,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            revision=revision,
            attn_implementation=attn_implementation,
        )
        config = loaded.config.get_text_config()
        codec = TextCodec(
            tokenizer,
            vocab=config.vocab_size,
            ends=_find_ends(loaded, tokenizer),
            chat_template_kwargs=chat_template_kwargs or {},
            label=self.label,
        )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        layers = config.num_hidden_layers
        self._dtype = loaded.get_input_embeddings().weight.dtype
        values = SingularValues()
        if space is not None:
            values = attach(
                loaded,
                space,
                probe=lambda: kv_bytes(loaded, layers, pad),
                label=self.label,
                dtype=self._dtype,
                device=target,
            )
        self._engine: Engine | None = Engine(loaded, values, codec, target, pad, layers)
        self._picker = PositionPicker(loaded.get_output_embeddings())
        self._context = getattr(config, "max_position_embeddings", None)
        self._limits = self._measure(memory_gb, max_rows)

    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt with every candidate; see `esalign.protocols.Backend`."""
        engine = self._open()
        table = self._tabulate(candidates)
        encoded = [engine.codec.encode(prompt, f"prompt {j}") for j, prompt in enumerate(prompts)]
        for j, ids in enumerate(encoded):
            self._check_context(f"prompt {j}", len(ids), sampling.max_tokens)
        answers: list[list[Completion | None]] = [[None] * len(encoded) for _ in range(len(table))]
        request = self._request(engine, table, sampling, len(encoded))
        rows = [Row(i, j, ids) for j, ids in enumerate(encoded) for i in range(len(table))]
        for row, completion in answer_all(engine, request, rows, self._limits):
            answers[row.candidate][row.prompt] = completion
            if on_completion is not None:
                on_completion(row.candidate, row.prompt, completion)
        return [[answer for answer in line if answer is not None] for line in answers]

    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the teacher-forced log-probabilities of given answers; see `esalign.protocols.Backend`."""
        engine = self._open()
        table = self._tabulate(candidates)
        plan = [self._score_row(engine, j, sequences, support) for j in range(len(sequences))]
        rows = [row._replace(candidate=i) for row in plan for i in range(len(table)) if len(row.wanted)]
        scores = [[_no_scores(row, support) for row in plan] for _ in range(len(table))]
        for batch in cut_scoring(rows, self._limits, engine.codec.vocab):
            for row, part in zip(batch, score_batch(engine, self._picker, batch, table), strict=True):
                scores[row.candidate][row.sequence] = part.numpy() if support is not None else part[:, 0].numpy()
        return scores

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids that the engine feeds for a prompt."""
        return self._open().codec.encode(prompt)

    def close(self) -> None:
        """Free the engine's memory. Calling it twice is harmless."""
        on_gpu = self._engine is not None and self._engine.device.type == "cuda"
        self._engine = None
        if on_gpu:
            torch.cuda.empty_cache()

    def _request(self, engine: Engine, table: Tensor, sampling: Sampling, prompts: int) -> Request:
        """Lay out what all rows of a call share."""
        return Request(
            sampling=sampling,
            table=table,
            uniforms=draw_uniforms(sampling, prompts, engine.device),
            stops=StopStrings(engine.codec, sampling.stop, engine.device) if sampling.stop else None,
            ends=torch.tensor(sorted(engine.codec.ends), dtype=torch.long, device=engine.device),
        )

    def _tabulate(self, candidates: Array) -> Tensor:
        """Return the candidates' singular values, shape (population, width), on the device."""
        if self.space is None:
            table = np.empty((len(as_candidates(candidates, 0)), 0), dtype=np.float32)
        else:
            table = self._open().values.tabulate(self.space, candidates)
        return torch.from_numpy(table).to(device=self._open().device, dtype=self._dtype)

    def _score_row(self, engine: Engine, j: int, sequences: Sequences, support: Sequence[Array] | None) -> ScoreRow:
        """Check sequence j and lay it out; its candidate is filled in later."""
        prompt = engine.codec.encode(sequences[j][0], f"the prompt of sequence {j}")
        answer = engine.codec.encode(sequences[j][1], f"the answer of sequence {j}") if len(sequences[j][1]) else ()
        self._check_context(f"the prompt of sequence {j}", len(prompt), len(answer))
        wanted = np.asarray(answer, dtype=np.int64)[:, None] if support is None else np.asarray(support[j])
        if wanted.ndim != 2 or len(wanted) != len(answer) or wanted.dtype.kind not in "iu":
            raise BackendError(
                f"support {j} has shape {wanted.shape} and type {wanted.dtype}, expected integers of shape "
                f"({len(answer)}, k): one row per token of the answer"
            )
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < engine.codec.vocab:
            raise BackendError(f"support {j} holds ids outside of the vocabulary, 0 to {engine.codec.vocab - 1}")
        return ScoreRow(0, j, prompt + answer, len(prompt), torch.from_numpy(wanted.astype(np.int64)))

    def _check_context(self, name: str, prompt: int, answer: int) -> None:
        """Refuse what does not fit the model's context."""
        if self._context is not None and prompt + answer > self._context:
            raise BackendError(
                f"{name} has {prompt} tokens and its answer may have {answer}, but model '{self.label}' has a context "
                f"of {self._context}: shorten the prompt or lower max_tokens"
            )

    def _measure(self, memory_gb: float | None, max_rows: int | None) -> Limits:
        """Find out what tokens cost, by one pass of one token, and derive the limits."""
        engine = self._open()
        engine.values.show(self._tabulate(np.zeros((1, self.space.dim if self.space else 0))))
        per_token = kv_bytes(engine.model, engine.layers, engine.pad)
        sizes = [p.shape[0] for p in engine.model.parameters() if p.ndim == 2 and p.shape[0] != engine.codec.vocab]
        widest = max(sizes, default=1) * self._dtype.itemsize
        return make_limits(
            engine.device,
            kv_bytes=per_token,
            token_bytes=8 * widest,
            vocab=engine.codec.vocab,
            memory_gb=memory_gb,
            max_rows=max_rows,
        )

    def _open(self) -> Engine:
        if self._engine is None:
            raise BackendError("the engine was closed: make a new one")
        return self._engine


def _check_options(*, dtype: str, quantization: str | None, **positive: float | None) -> None:
    if dtype not in DTYPES:
        raise BackendError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if quantization not in (None, "int8", "int4"):
        raise BackendError(f"quantization is {quantization!r}, expected 'int8', 'int4' or none")
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise BackendError(f"{name} is {value!r}, expected a number above 0")


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendError(f"device is {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:<number>'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device is {name!r}, but this machine has {torch.cuda.device_count()} CUDA GPUs: use 'cpu'")
    return device


def _find_ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: those of the generation config, and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _no_scores(row: ScoreRow, support: Sequence[Array] | None) -> Array:
    return np.empty(tuple(row.wanted.shape) if support is not None else (len(row.wanted),), dtype=np.float32)
