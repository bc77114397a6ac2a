"""The vLLM engine behind the `Backend` protocol."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from esalign.engines.checks import as_asked, check_choice, check_count, check_sequences, opened
from esalign.engines.encoding import Encoding
from esalign.engines.loading import list_ends
from esalign.engines.text import TextCodec
from esalign.engines.turns import one_at_a_time
from esalign.protocols import Space
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences, as_candidates
from esalign_vllm.basis import MODES
from esalign_vllm.decoding import generation_parameters
from esalign_vllm.engine import Engine, start_engine
from esalign_vllm.environment import quietly
from esalign_vllm.fit import check_fit, check_kernels, load_config, load_generation_config
from esalign_vllm.options import check_device, check_options, choose_dtype, default_arguments
from esalign_vllm.requests import Request
from esalign_vllm.scoring import Scorer
from esalign_vllm.versions import PACKAGES, check_version, installed_version

Work = Sequence[tuple[int, list[int], Any]]
Finish = Callable[[tuple[int, int], Any], None]

MOST_SCORES = 2**24  # log-probabilities to hold at a time, as Python numbers: some GB


class VllmBackend(Encoding):
    """An inference engine that completes with a whole population in one call of vLLM.

    Args:
        model: path or name of the base model, as vLLM takes it; quantised ones included.
        space: the search space; None for the bare model, with candidates of shape (population, 0).
        dtype: ``auto`` (the model's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, or the device that the installed vLLM was built for: ``cpu`` or ``cuda``.
        mode: ``shared-basis`` (one copy of the factors, a table of singular values), ``slots`` (each candidate in one
            of vLLM's LoRA slots), ``files`` (adapter files, public parts of vLLM only), or ``auto``: the first of them
            that works, with a warning if it is not the first.
        slots: the most candidates of one call of vLLM, at least 1; a larger population takes several calls. None for
            256, or in the modes that hold a matrix per slot and layer, 32.
        seed: seed that vLLM is given; no completion depends on it.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
        **options: arguments of ``vllm.LLM``, e.g. ``tensor_parallel_size`` or ``max_model_len``.

    Raises:
        MissingPackageError: vLLM is not installed.
        ConfigError: an unknown option of vLLM, or one that the backend sets itself.
        BackendError: vLLM does not start, an own option is out of range, or the adapter is of another model.
    """

    packages = PACKAGES

    def __init__(
        self,
        model: str,
        space: Space | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        mode: str = "auto",
        slots: int | None = None,
        seed: int = 0,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_choice("mode", mode, ("auto", *MODES))
        check_count("slots", slots)
        check_version(installed_version())
        if "vllm" not in sys.modules:  # once imported, it keeps its logger
            with quietly():
                from vllm import LLM  # noqa: F401  (a lazy module: most of it is imported by this name)
        on_cpu = check_device(device)
        check_options(options)
        self.label = str(model)
        self.space = space
        config = load_config(self.label, trust_remote_code=bool(options.get("trust_remote_code")))
        check_kernels(config, self.label, on_cpu=on_cpu)
        if space is not None:
            check_fit(space, config, self.label)
        arguments = default_arguments(config, choose_dtype(dtype, config), options, on_cpu=on_cpu)
        devices = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
        self._engine: Engine | None = start_engine(
            self.label,
            space,
            mode=mode,
            slots=slots,
            in_process=on_cpu and devices == 1,
            arguments={**arguments, **options, "seed": seed},
        )
        llm = self._engine.llm
        self._scorer = Scorer(llm, config.get_text_config().vocab_size)
        tokenizer = llm.get_tokenizer()
        self._codec = TextCodec(
            tokenizer,
            vocab=config.get_text_config().vocab_size,
            ends=list_ends(load_generation_config(self.label, config), tokenizer),
            context=self._scorer.context,
            remedy="shorten the prompt, lower max_tokens, or raise the option max_model_len",
            chat_template_kwargs=chat_template_kwargs,
            label=f"model '{model}'",
        )

    @property
    def engine(self) -> Engine:
        """The running engine, for measurements: `Engine.llm` is vLLM's own object."""
        return opened(self._engine)

    @property
    def mode(self) -> str:
        """How candidates reach vLLM: ``shared-basis``, ``slots`` or ``files``; ``bare`` without a space."""
        return opened(self._engine).mode

    @one_at_a_time
    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Complete every prompt with every candidate; see `esalign.protocols.Backend`."""
        opened(self._engine)
        vectors = as_candidates(candidates, self.space.dim if self.space else 0)
        encoded = self._codec.encode_prompts(prompts, sampling.max_tokens)
        ends, special = sorted(self._codec.ends_with(sampling.stop)), self._codec.shows_special(sampling.stop)
        work = [
            (j, list(ids), generation_parameters(sampling, j, ends, special=special)) for j, ids in enumerate(encoded)
        ]
        rows: list[list[Any]] = [[None] * len(encoded) for _ in vectors]

        def finish(key: tuple[int, int], output: Any) -> None:
            i, j = key
            written = output.outputs[0]
            logprob = written.cumulative_logprob if sampling.logprob else None
            rows[i][j] = self._codec.complete(written.token_ids, sampling.stop, logprob)
            if on_completion is not None:
                on_completion(i, j, rows[i][j])

        self._run(vectors, work, finish)
        return rows

    @one_at_a_time
    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the log-probabilities of given completions; see `esalign.protocols.Backend`.

        With support, most versions of vLLM return those of the whole vocabulary, which is slow where that is large.
        """
        opened(self._engine)
        vectors = as_candidates(candidates, self.space.dim if self.space else 0)
        given = check_sequences(self._codec, sequences, support)
        wide = support is not None
        plans = {j: self._scorer.plan(one, wide=wide) for j, one in enumerate(given) if one.completion}
        rows = [[np.empty(one.wanted.shape, dtype=np.float32) for one in given] for _ in vectors]

        def finish(key: tuple[int, int], output: Any) -> None:
            i, j = key
            rows[i][j] = plans[j].read(output)

        most = max((plan.values for plan in plans.values()), default=1)
        work = [(j, plan.ids, plan.parameters) for j, plan in plans.items()]
        self._run(vectors, work, finish, together=max(1, MOST_SCORES // most))
        return as_asked(rows, support)

    @one_at_a_time
    def close(self) -> None:
        """Stop vLLM and free its memory. Calling it twice is harmless."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _run(self, vectors: Array, work: Work, finish: Finish, *, together: int | None = None) -> None:
        """Run work for each candidate, as many candidates at a time as there are slots.

        Args:
            vectors: shape (population, dim).
            work: (number, token ids, vLLM's parameters) per sequence.
            finish: called with (candidate, number) and vLLM's output.
            together: the most requests at a time; None for all.
        """
        engine = opened(self._engine)
        most = together or max(1, len(vectors) * len(work))
        parts = -(-len(vectors) // engine.slots)
        first = 0
        for part in np.array_split(vectors, parts):
            with engine.candidates(part) as adapters:
                requests = [
                    Request((first + i, number), ids, parameters, adapter)
                    for i, adapter in enumerate(adapters)
                    for number, ids, parameters in work
                ]
                for start in range(0, len(requests), most):
                    engine.run(requests[start : start + most], finish)
            first += len(part)
