"""The engine as esalign sees it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from esalign.engines.checks import as_asked, check_choice, check_count, check_positive, check_sequences, opened
from esalign.engines.encoding import Encoding
from esalign.engines.loading import load_tokenizer
from esalign.engines.sampling import lay_out_uniforms
from esalign.engines.stops import StopStrings
from esalign.engines.text import TextCodec
from esalign.engines.turns import one_at_a_time
from esalign.protocols import Space
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences, as_candidates
from esalign_llama_cpp.consumers import Completions, Scores, group_by_prompt
from esalign_llama_cpp.context import CACHE_TYPES
from esalign_llama_cpp.engine import Engine, SingularValues
from esalign_llama_cpp.library import load_library
from esalign_llama_cpp.model import GgufModel, Vocabulary
from esalign_llama_cpp.options import check_sequence_count, default_threads, find_device, make_settings
from esalign_llama_cpp.sources import KIND_OF_DTYPE, QUANTIZATIONS, Source, find_source
from esalign_llama_cpp.switch import METHODS, Method
from esalign_llama_cpp.text import GgufTokenizer


class LlamaCppBackend(Encoding):
    """Runs GGUF models, in any quantisation, with one adapter that is rewritten for every candidate.

    A GGUF file is used as it is. A Hugging Face model of the Llama, Mistral, Qwen2 or Qwen3 family is converted first.
    Candidates are answered one after another, the prompts of each in common batches. Every candidate sees the same
    prompts in the same order.

    Prompts are tokenised by the Hugging Face tokenizer where there is one, else by the GGUF file's vocabulary.

    Args:
        model: a GGUF file, or the folder or Hugging Face id of a model to convert.
        space: the frozen factors; None for the bare model, with candidates of shape (population, 0).
        dtype: ``"float32"`` for a float32 key-value cache without flash attention, and for float32 weights of a
            converted model; ``"float16"`` or ``"bfloat16"`` likewise, with a cache of float16; ``"auto"`` for what the
            weights are.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU where llama.cpp was built for one.
        quantization: of a converted model: f32, f16, bf16, q8_0, q4_0 or q4_k_m; None goes by dtype.
        cache: folder that keeps converted models, each under a hash of its content; None converts into a temporary
            folder that goes at the end.
        tokenizer: folder or id of a Hugging Face tokenizer; None for that of the model's folder, and for a GGUF file
            its own vocabulary.
        method: how to switch candidates: ``"in-place"`` rewrites the adapter in llama.cpp's memory, ``"files"`` loads
            each one anew, ``"auto"`` takes the first that passes its checks.
        threads: CPU threads; None for half of the processors, which is one per core where a core counts as two. More
            threads than idle cores are much slower than fewer.
        context: the most tokens of a prompt with its completion; None grows with what is asked, up to the model's own.
        sequences: sequences answered together, 1 to 255; None for 32, or fewer where their cache would be too large.
        batch: the most tokens of one step.
        kv_type: type of the key-value cache: f32, f16 or q8_0; None goes by dtype.
        kv_memory_gb: memory for the key-value cache, in GB, where ``sequences`` is None.
        flash_attention: None leaves it to llama.cpp, but with a float32 cache it is off.
        kv_unified: one cache for all sequences. Mostly a bit faster, but with quantised weights a completion then
            depends on which others are in its batch.
        gpu_layers: layers on the GPU; None for all.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.

    Raises:
        AdapterError: the space adapts layers that this architecture does not have.
        BackendError: the model cannot be loaded, an option is out of range, or the space is of another model.
        MissingPackageError: llama-cpp-python is not installed.
    """

    packages = ("llama-cpp-python",)

    def __init__(
        self,
        model: str | Path,
        space: Space | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        quantization: str | None = None,
        cache: str | Path | None = None,
        tokenizer: str | Path | None = None,
        method: Method = "auto",
        threads: int | None = None,
        context: int | None = None,
        sequences: int | None = None,
        batch: int = 512,
        kv_type: str | None = None,
        kv_memory_gb: float = 2.0,
        flash_attention: bool | None = None,
        kv_unified: bool = False,
        gpu_layers: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, choices in (
            ("dtype", dtype, ("auto", *KIND_OF_DTYPE)),
            ("quantization", quantization, (None, *QUANTIZATIONS)),
            ("method", method, METHODS),
            ("kv_type", kv_type, (None, *CACHE_TYPES)),
        ):
            check_choice(name, value, choices)
        for name, count in (("threads", threads), ("context", context), ("sequences", sequences), ("batch", batch)):
            check_count(name, count)
        check_count("gpu_layers", gpu_layers, least=0)
        check_positive("kv_memory_gb", kv_memory_gb)
        check_sequence_count(sequences, batch=batch)
        library = load_library()
        layers, gpu = find_device(device, gpu_layers, gpus=bool(library.api.llama_supports_gpu_offload()))
        threads = threads or default_threads()
        self.space = space
        with ExitStack() as undo:
            self._source = find_source(model, dtype=dtype, quantization=quantization, cache=cache, threads=threads)
            undo.callback(self._source.close)
            loaded = GgufModel(library, self._source.gguf, gpu_layers=layers, gpu=gpu)
            undo.callback(loaded.close)
            settings = make_settings(
                loaded,
                dtype=dtype,
                threads=threads,
                batch=batch,
                kv_type=kv_type,
                flash_attention=flash_attention,
                kv_unified=kv_unified,
            )
            self._codec = _make_codec(loaded, self._source, tokenizer, context, chat_template_kwargs)
            self._engine: Engine | None = Engine(
                loaded,
                space,
                settings,
                method=method,
                sequences=sequences,
                context=context,
                kv_bytes=kv_memory_gb * 1e9,
            )
            undo.pop_all()

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
        encoded = self._codec.encode_prompts(prompts, sampling.max_tokens)
        groups = group_by_prompt(encoded, range(len(encoded)))
        longest = max(map(len, encoded), default=0) + sampling.max_tokens
        uniforms = lay_out_uniforms(sampling, len(encoded))
        stops = StopStrings(self._codec, sampling.stop) if sampling.stop else None
        rows = []
        for i, values in enumerate(table):
            done: dict[int, Completion] = {}

            def finish(j: int, completion: Completion, i: int = i, done: dict[int, Completion] = done) -> None:
                done[j] = completion
                if on_completion is not None:
                    on_completion(i, j, completion)

            consumer = Completions(self._codec, sampling, stops, uniforms, finish)
            engine.run(values, groups, consumer, longest=longest)
            rows.append([done[j] for j in range(len(encoded))])
        return rows

    @one_at_a_time
    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the teacher-forced log-probabilities of given completions; see `esalign.protocols.Backend`."""
        engine = opened(self._engine)
        table = self._tabulate(candidates)
        given = check_sequences(self._codec, sequences, support)
        groups = group_by_prompt([one.prompt for one in given], [j for j, one in enumerate(given) if one.completion])
        longest = max((len(one.prompt) + len(one.completion) for one in given), default=0)
        rows = []
        for values in table:
            scores = Scores(given)
            engine.run(values, groups, scores, longest=longest)
            rows.append(scores.values)
        return as_asked(rows, support)

    @one_at_a_time
    def close(self) -> None:
        """Free the engine's memory, and remove a temporary model. Calling it twice is harmless."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._source.close()

    def _tabulate(self, candidates: Array) -> list[SingularValues]:
        """Return per candidate the singular values of A and B of every module."""
        if self.space is None:
            return [[] for _ in as_candidates(candidates, 0)]
        pairs = self.space.singular_values(candidates)
        return [[(a[i], b[i]) for a, b in pairs] for i in range(len(np.asarray(candidates)))]


def _make_codec(
    model: GgufModel,
    source: Source,
    tokenizer: str | Path | None,
    context: int | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> TextCodec:
    """Return the codec of the tokenizer that was asked for, of the folder's, or of the GGUF file's vocabulary."""
    home = tokenizer or source.folder
    ends = frozenset(source.ends) or Vocabulary(model).ends
    if home is None:
        chosen: Any = GgufTokenizer(model)
    else:
        chosen = load_tokenizer(str(home))
        ends |= {chosen.eos_token_id} - {None}
    longer = "raise the option 'context', " if context is not None else ""
    return TextCodec(
        chosen,
        vocab=model.vocab_size,
        ends=ends,
        context=context or model.context,
        remedy=f"{longer}shorten the prompt or lower max_tokens",
        chat_template_kwargs=chat_template_kwargs,
        label=f"model '{model.path if home is None else home}'",
    )
