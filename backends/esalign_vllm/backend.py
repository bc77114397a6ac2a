"""The vLLM engine behind the `Backend` protocol."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from esalign.engines.text import TextCodec
from esalign.errors import BackendError, ConfigError
from esalign.space import SvdLora
from esalign.types import Array, Completion, OnCompletion, Prompt, Sampling, Sequences, as_candidates
from esalign_vllm.basis import MODES
from esalign_vllm.decoding import generation_parameters
from esalign_vllm.engine import Engine, start_engine
from esalign_vllm.environment import import_vllm
from esalign_vllm.fit import check_fit, check_kernels, find_ends, load_config
from esalign_vllm.options import check_device, check_options, choose_dtype, default_arguments
from esalign_vllm.requests import Request
from esalign_vllm.scoring import Scorer
from esalign_vllm.versions import check_version, installed_version

Work = Sequence[tuple[int, list[int], Any]]
Finish = Callable[[tuple[int, int], Any], None]

MOST_SCORES = 2**24  # log-probabilities to hold at a time, as Python numbers: some GB


class VllmBackend:
    """An inference engine that answers with a whole population in one call of vLLM.

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
        seed: seed that vLLM is given; no answer depends on it.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": False}``.
        **options: arguments of ``vllm.LLM``, e.g. ``tensor_parallel_size`` or ``max_model_len``.

    Raises:
        MissingPackageError: vLLM is not installed.
        ConfigError: an unknown option, or one that the backend sets itself.
        BackendError: vLLM does not start, or the adapter is of another model.
    """

    def __init__(
        self,
        model: str,
        space: SvdLora | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        mode: str = "auto",
        slots: int | None = None,
        seed: int = 0,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        _check_own_options(mode, slots)
        check_version(installed_version())
        import_vllm()
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
        self._context = self._scorer.context
        tokenizer = llm.get_tokenizer()
        self._ends = find_ends(self.label, config, tokenizer)
        self._codec = TextCodec(
            tokenizer,
            vocab=config.get_text_config().vocab_size,
            ends=self._ends,
            chat_template_kwargs=chat_template_kwargs or {},
            label=self.label,
        )

    @property
    def engine(self) -> Engine:
        """The running engine, for measurements: `Engine.llm` is vLLM's own object."""
        return self._open()

    @property
    def mode(self) -> str:
        """How candidates reach vLLM: ``shared-basis``, ``slots`` or ``files``; ``bare`` without a space."""
        return self._open().mode

    def generate(
        self,
        candidates: Array,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Answer every prompt with every candidate; see `esalign.protocols.Backend`."""
        self._open()
        vectors = as_candidates(candidates, self.space.dim if self.space else 0)
        encoded = [list(self._codec.encode(prompt, f"prompt {j}")) for j, prompt in enumerate(prompts)]
        for j, ids in enumerate(encoded):
            self._check_context(f"prompt {j}", len(ids), sampling.max_tokens)
        ends = sorted(self._ends)
        parameters = [generation_parameters(sampling, j, ends) for j in range(len(encoded))]
        rows: list[list[Any]] = [[None] * len(encoded) for _ in vectors]

        def finish(key: tuple[int, int], output: Any) -> None:
            i, j = key
            rows[i][j] = self._codec.complete(output.outputs[0].token_ids, sampling.stop)
            if on_completion is not None:
                on_completion(i, j, rows[i][j])

        self._run(vectors, list(zip(range(len(encoded)), encoded, parameters, strict=True)), finish)
        return rows

    def score(
        self, candidates: Array, sequences: Sequences, support: Sequence[Array] | None = None
    ) -> list[list[Array]]:
        """Give the log-probabilities of given answers; see `esalign.protocols.Backend`.

        With support, most versions of vLLM return those of the whole vocabulary, which is slow where that is large.
        """
        self._open()
        vectors = as_candidates(candidates, self.space.dim if self.space else 0)
        checked = [self._check_sequence(j, *sequence) for j, sequence in enumerate(sequences)]
        wanted = [self._check_support(j, checked[j][1], support) for j in range(len(checked))]
        plans = {
            j: self._scorer.plan(prompt, answer, ids)
            for j, ((prompt, answer), ids) in enumerate(zip(checked, wanted, strict=True))
            if answer
        }
        empty = [np.empty((0,) if ids is None else ids.shape, dtype=np.float32) for ids in wanted]
        rows = [[part.copy() for part in empty] for _ in vectors]

        def finish(key: tuple[int, int], output: Any) -> None:
            i, j = key
            rows[i][j] = plans[j].read(output)

        most = max((plan.values for plan in plans.values()), default=1)
        work = [(j, plan.ids, plan.parameters) for j, plan in plans.items()]
        self._run(vectors, work, finish, together=max(1, MOST_SCORES // most))
        return rows

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids that the engine feeds for a prompt."""
        self._open()
        return self._codec.encode(prompt)

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
        engine = self._open()
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

    def _check_sequence(self, j: int, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[int], list[int]]:
        ids = list(self._codec.encode(prompt, f"the prompt of sequence {j}"))
        checked = self._codec.check_ids(answer, f"the answer of sequence {j}")
        self._check_context(f"the prompt of sequence {j}", len(ids), len(checked))
        return ids, checked

    def _check_support(self, j: int, answer: list[int], support: Sequence[Array] | None) -> Array | None:
        if support is None:
            return None
        ids = np.asarray(support[j])
        if ids.ndim != 2 or len(ids) != len(answer) or ids.dtype.kind not in "iu":
            raise BackendError(
                f"support {j} has shape {ids.shape} and type {ids.dtype}, expected integers of shape "
                f"({len(answer)}, k): one row per token of the answer"
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < self._codec.vocab:
            raise BackendError(f"support {j} holds ids outside of the vocabulary, 0 to {self._codec.vocab - 1}")
        return ids

    def _check_context(self, name: str, prompt: int, answer: int) -> None:
        if prompt + answer > self._context:
            raise BackendError(
                f"{name} has {prompt} tokens and its answer may have {answer}, but model '{self.label}' has a context "
                f"of {self._context}: shorten the prompt, lower max_tokens, or raise the option max_model_len"
            )

    def _open(self) -> Engine:
        if self._engine is None:
            raise BackendError("the engine was closed: make a new one")
        return self._engine


def _check_own_options(mode: str, slots: int | None) -> None:
    if mode not in ("auto", *MODES):
        raise ConfigError(f"option mode of backend 'vllm' is {mode!r}, expected auto, {', '.join(MODES)}")
    if slots is not None and (not isinstance(slots, int) or slots < 1):
        raise ConfigError(f"option slots of backend 'vllm' is {slots!r}, expected a whole number of at least 1")
