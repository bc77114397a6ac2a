"""The engine as esalign sees it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from esalign.engines.checks import Given, as_asked, check_choice, check_count, check_positive, check_sequences, opened
from esalign.engines.encoding import Encoding
from esalign.engines.loading import LoadedModel, load_model
from esalign.engines.sampling import lay_out_uniforms
from esalign.engines.stops import StopStrings
from esalign.engines.text import TextCodec
from esalign.engines.turns import one_at_a_time
from esalign.protocols import Space
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences, as_candidates
from esalign_torch.attention import share_keys
from esalign_torch.batches import Limits, make_limits
from esalign_torch.cache import kv_bytes
from esalign_torch.decoding import Engine, Request, Row
from esalign_torch.loading import quantize, refuse_unsupported, turns_by_length
from esalign_torch.lora import SingularValues, attach
from esalign_torch.scheduling import complete_all
from esalign_torch.scoring import ScoreRow, cut_scoring, score_batch


class TorchBackend(Encoding):
    """Runs all candidates on all prompts as one batch over one copy of the weights.

    It takes any causal language model of transformers whose adapted layers are linear and whose layers remember keys
    and values (no recurrent ones). To complete them, each candidate reads once what all prompts of a batch begin with
    (a template, instructions, examples), and a prompt that comes several times. Text prompts are tokenised with the
    special tokens that the tokenizer itself adds; chats are rendered by its template, which brings its own.

    The same call gives the same completions, bit by bit. Other batches (another population, other prompts beside) round
    differently, in float32 by about 1e-6 of a logit, which can tip a token that was as good as tied.

    Args:
        model: folder, Hugging Face id, or a GGUF file, whose weights are dequantised; or a model that is loaded already
            and may go on learning between calls, to which the options of loading, dtype and device too, do not apply.
        space: the frozen factors; None for the bare model, with candidates of shape (population, 0).
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the checkpoint's own.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU where there is one.
        quantization: None, ``"int8"`` or ``"int4"`` base weights (needs torchao); the update stays in dtype.
        memory_gb: memory for batches, in GB; None for half of what the machine has beside the weights.
        max_rows: the most sequences decoded together; None for 256 on a CPU, and what fits on a GPU.
        ends: ids that end a completion beside the model's own.
        threads: CPU threads of the whole process; None leaves torch's setting.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
        attn_implementation: as in transformers; None for its choice, or eager where attention has a soft cap.
        trust_remote_code: run code that comes with the model.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        BackendError: the model cannot be loaded, or the space is of another model.
        MissingPackageError: quantisation without torchao.
    """

    packages = ("torch", "transformers")

    def __init__(
        self,
        model: str | Path | LoadedModel,
        space: Space | None = None,
        *,
        dtype: str = "float32",
        device: str = "auto",
        quantization: Literal["int8", "int4"] | None = None,
        memory_gb: float | None = None,
        max_rows: int | None = None,
        ends: Sequence[int] = (),
        threads: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        check_choice("quantization", quantization, (None, "int8", "int4"))
        for name, count in (("threads", threads), ("max_rows", max_rows)):
            check_count(name, count)
        check_positive("memory_gb", memory_gb)
        if threads is not None:
            torch.set_num_threads(threads)
        loaded = (
            model
            if isinstance(model, LoadedModel)
            else load_model(
                "model",
                str(model),
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                revision=revision,
                attn_implementation=attn_implementation,
            )
        )
        refuse_unsupported(loaded)
        if quantization is not None:
            quantize(loaded, quantization)
        network = loaded.model
        share_keys(network)
        config = network.config.get_text_config()
        codec = TextCodec(
            loaded.tokenizer,
            vocab=config.vocab_size,
            ends=(*loaded.ends, *ends),
            context=getattr(config, "max_position_embeddings", None),
            chat_template_kwargs=chat_template_kwargs,
            label=loaded.label,
        )
        pad = loaded.tokenizer.pad_token_id or 0
        layers = config.num_hidden_layers
        self.space = space
        self._dtype = network.get_input_embeddings().weight.dtype
        values = SingularValues()
        if space is not None:
            probe = partial(kv_bytes, network, layers, pad)
            values = attach(loaded, space, probe=probe, dtype=self._dtype)
        self._codec = codec
        self._engine: Engine | None = Engine(
            network, values, codec, network.device, pad, layers, shares_starts=not turns_by_length(config)
        )
        self._limits = self._measure(memory_gb, max_rows)

    @one_at_a_time
    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Complete every prompt with every candidate; see `esalign.protocols.Backend`."""
        engine = opened(self._engine)
        table = self._tabulate(candidates)
        encoded = engine.codec.encode_prompts(prompts, sampling.max_tokens)
        completions: list[list[Completion | None]] = [[None] * len(encoded) for _ in range(len(table))]
        request = self._request(engine, table, sampling, len(encoded))
        rows = [Row(i, j, ids) for j, ids in enumerate(encoded) for i in range(len(table))]
        for row, completion in complete_all(engine, request, rows, self._limits):
            completions[row.candidate][row.prompt] = completion
            if on_completion is not None:
                on_completion(row.candidate, row.prompt, completion)
        return [[completion for completion in line if completion is not None] for line in completions]

    @one_at_a_time
    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the teacher-forced log-probabilities of given completions; see `esalign.protocols.Backend`."""
        engine = opened(self._engine)
        table = self._tabulate(candidates)
        given = check_sequences(engine.codec, sequences, support)
        rows = [_score_row(i, j, one) for j, one in enumerate(given) for i in range(len(table)) if one.completion]
        scores = [[np.empty(one.wanted.shape, dtype=np.float32) for one in given] for _ in range(len(table))]
        for batch in cut_scoring(rows, self._limits, engine.codec.vocab):
            for row, part in zip(batch, score_batch(engine, batch, table), strict=True):
                scores[row.candidate][row.sequence] = part.numpy()
        return as_asked(scores, support)

    @one_at_a_time
    def close(self) -> None:
        """Free the engine's memory. Calling it twice is harmless."""
        on_gpu = self._engine is not None and self._engine.device.type == "cuda"
        self._engine = None
        if on_gpu:
            torch.cuda.empty_cache()

    def _request(self, engine: Engine, table: Tensor, sampling: Sampling, prompts: int) -> Request:
        """Lay out what all rows of a call share."""
        stops, marks = None, None
        if sampling.stop:
            stops = StopStrings(engine.codec, sampling.stop)
            marks = torch.tensor([stops.may_complete(token) for token in range(engine.codec.vocab)])  # (vocab,)
        return Request(
            sampling=sampling,
            table=table,
            uniforms=torch.from_numpy(lay_out_uniforms(sampling, prompts)).to(engine.device),
            stops=stops,
            may_complete=None if marks is None else marks.to(engine.device),
            ends=torch.tensor(sorted(engine.codec.ends_with(sampling.stop)), dtype=torch.long, device=engine.device),
        )

    def _tabulate(self, candidates: Array) -> Tensor:
        """Return the candidates' singular values, shape (population, width), on the device."""
        if self.space is None:
            table = np.empty((len(as_candidates(candidates, 0)), 0), dtype=np.float32)
        else:
            table = opened(self._engine).values.tabulate(self.space, candidates)
        return torch.from_numpy(table).to(device=opened(self._engine).device, dtype=self._dtype)

    def _measure(self, memory_gb: float | None, max_rows: int | None) -> Limits:
        """Find out what tokens cost, by one pass of one token, and derive the limits."""
        engine = opened(self._engine)
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


def _score_row(candidate: int, sequence: int, given: Given) -> ScoreRow:
    """Lay out a completion to be scored by a candidate."""
    ids, start = given.prompt + given.completion, len(given.prompt)
    return ScoreRow(candidate, sequence, ids, start, torch.from_numpy(given.wanted))
