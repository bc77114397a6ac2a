"""Starting vLLM with room for candidates, and making candidates current in it."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

from esalign.errors import BackendError, EsalignWarning
from esalign.protocols import Space
from esalign.types import Array
from esalign_vllm.basis import BARE, FILES, MODES, SHARED_BASIS, SLOTS, tabulate, write_basis
from esalign_vllm.environment import IN_PROCESS, defaults, preserved_process, quietly
from esalign_vllm.files import memory_folder, write_candidate
from esalign_vllm.requests import Request, reason, run_requests

SLOTS_BY_MODE = {BARE: 256, SHARED_BASIS: 256, SLOTS: 32, FILES: 32}
"""The most candidates at a time: a slot costs a table's row, or two matrices per layer."""

WORKER = "esalign_vllm.worker.PopulationWorker"
MEMORY_PATH = "mem://esalign"  # vLLM wants a path of an adapter; this one is never read


class _ModeError(BackendError):
    """This vLLM, or this model in it, lacks what a mode needs."""


class Engine:
    """A running vLLM and the candidates in it.

    Args:
        model: path or name of the base model.
        space: the search space; None for the bare model.
        mode: ``shared-basis``, ``slots`` or ``files``; ``bare`` without a space.
        slots: the most candidates at a time; None for what the mode affords.
        in_process: run vLLM's engine in this process, as is best on CPUs.
        arguments: further arguments of ``vllm.LLM``.

    Raises:
        BackendError: vLLM does not start, or lacks what the mode needs.
    """

    in_this_process: ClassVar["WeakSet[Engine]"] = WeakSet()  # they share vLLM's process groups: the last one ends them

    def __init__(
        self,
        model: str,
        space: Space | None,
        *,
        mode: str,
        slots: int | None,
        in_process: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        self.space = space
        self.mode = mode
        self.slots = slots or SLOTS_BY_MODE[mode]
        self.in_process = in_process
        self.calls = 0
        self.llm: Any = None
        self._failure: BackendError | None = None
        with memory_folder() as folder:
            settings = {} if space is None else _lora_arguments(space, mode, self.slots, folder)
            extension = {"worker_extension_cls": WORKER}
            self.llm = _start(model, in_process=in_process, arguments={**arguments, **extension, **settings})
        if in_process:
            Engine.in_this_process.add(self)
        if space is not None and mode != FILES:
            self._check_workers(model, space)

    def _check_workers(self, model: str, space: Space) -> None:
        reports = self.llm.collective_rpc("esalign_start")
        problem = next((report["problem"] for report in reports if report["problem"]), "")
        adapted = {name for report in reports for name in report["adapted"]}
        missing = next((module.name for module in space.modules if module.name not in adapted), None)
        if not problem and missing:
            problem = f"it has no LoRA layer for {missing!r}"
        if problem:
            self.close()
            raise _ModeError(f"mode {self.mode!r} of backend 'vllm' does not work with model '{model}': {problem}")

    @contextmanager
    def candidates(self, vectors: Array) -> Iterator[list[Any]]:
        """Make candidates, shape (population, dim), current. Yields a LoRARequest for each; None without a space.

        vLLM keys its prefix cache by the names of adapters, and would reuse the keys and values of former candidates
        under the same name: every call gets new names.
        """
        from vllm.lora.request import LoRARequest

        if self.space is None:
            yield [None] * len(vectors)
            return
        self.calls += 1
        population = len(vectors)
        names = [f"esalign-{self.calls}-{number}" for number in range(population)]
        if self.mode != FILES:
            rows = tabulate(self.space, vectors)
            self.llm.collective_rpc("esalign_write", args=(rows.tobytes(), population))
            yield [LoRARequest(name, number + 1, MEMORY_PATH) for number, name in enumerate(names)]
            return
        with memory_folder() as folder:
            first = 1 + self.calls * self.slots  # ids are new too, so that vLLM reads the new files
            for name, vector in zip(names, vectors, strict=True):
                write_candidate(self.space, vector, folder / name)
            yield [LoRARequest(name, first + number, str(folder / name)) for number, name in enumerate(names)]

    def run(self, requests: Sequence[Request], on_finished: Callable[[Any, Any], None]) -> None:
        """Run requests to the end; see `run_requests`. Sampling in this process leaves its generators as they were.

        Raises:
            BackendError: vLLM fails, or has failed before: then it says no more what the matter is.
        """
        if self._failure is not None:
            raise self._failure
        around_step = preserved_process if self.in_process else nullcontext
        try:
            run_requests(self.llm.llm_engine, requests, on_finished, around_step)
        except BackendError as error:
            self._failure = error
            raise

    def close(self) -> None:
        """Stop the engine and free its memory."""
        if self.llm is None:
            return
        Engine.in_this_process.discard(self)
        engine, self.llm = self.llm.llm_engine, None
        with _process_groups_of_others():
            engine.engine_core.shutdown()
        del engine
        _end_process_groups()


def start_engine(
    model: str, space: Space | None, *, mode: str, slots: int | None, in_process: bool, arguments: Mapping[str, Any]
) -> Engine:
    """Start an engine in a mode; for ``auto``, in the best that works, with a warning when it is not the first.

    Raises:
        BackendError: vLLM does not start.
    """
    wanted = (BARE,) if space is None else MODES if mode == "auto" else (mode,)
    for number, name in enumerate(wanted):
        try:
            return Engine(model, space, mode=name, slots=slots, in_process=in_process, arguments=arguments)
        except _ModeError as error:
            if number == len(wanted) - 1:
                raise
            text = f"{error}; falling back to mode {wanted[number + 1]!r}, which is slower"
            warnings.warn(text, EsalignWarning, stacklevel=3)
    raise AssertionError(mode)


def _lora_arguments(space: Space, mode: str, slots: int, folder: Path) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM`` that make room for candidates; the factors go to a file in the folder."""
    from vllm import EngineArgs

    rank = max(module.rank for module in space.modules)
    arguments: dict[str, Any] = {
        "enable_lora": True,
        "max_loras": slots,
        "max_lora_rank": 1 if mode == SHARED_BASIS else fitting_rank(rank, mode),
    }
    if hasattr(EngineArgs, "lora_target_modules"):
        arguments["lora_target_modules"] = sorted({module.name.rpartition(".")[2] for module in space.modules})
    if mode == FILES:
        return {**arguments, "max_cpu_loras": 2 * slots}
    basis = folder / "basis.safetensors"
    write_basis(space, basis)
    settings = {"esalign": {"mode": mode, "basis": str(basis)}}
    return {**arguments, "additional_config": settings}


def fitting_rank(rank: int, mode: str) -> int:
    """Return the lowest rank of vLLM's LoRA buffers that holds a rank.

    Raises:
        BackendError: vLLM has no buffers for such a rank.
    """
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    ranks = sorted(get_args(MaxLoRARanks))
    fitting = next((known for known in ranks if known >= rank), None)
    if fitting is None:
        raise BackendError(
            f"the adapter has rank {rank}, above vLLM's limit of {ranks[-1]} in mode {mode!r}: "
            "use mode 'shared-basis', which has no limit, or an adapter of lower rank"
        )
    return fitting


def _start(model: str, *, in_process: bool, arguments: Mapping[str, Any]) -> Any:
    """Start vLLM, leaving this process as it was."""
    from vllm import LLM

    with ExitStack() as stack:
        stack.enter_context(defaults(IN_PROCESS if in_process else {}))
        stack.enter_context(quietly())
        stack.enter_context(preserved_process())
        try:
            return LLM(model=model, **arguments)
        except (ValueError, RuntimeError, NotImplementedError, OSError, AssertionError, ImportError) as error:
            _end_process_groups()
            raise BackendError(f"vLLM cannot start model '{model}': {reason(error)}") from error


def _end_process_groups() -> None:
    """End what engines in this process share, if none of them is left. It frees memory, too."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    if not Engine.in_this_process:
        cleanup_dist_env_and_memory()


@contextmanager
def _process_groups_of_others() -> Iterator[None]:
    """Keep an engine that stops from ending what it shares with others in this process, as vLLM would have it."""
    core: Any = import_module("vllm.v1.engine.core")
    name = "cleanup_dist_env_and_memory"
    original = getattr(core, name, None)
    if original is None or not Engine.in_this_process:
        yield
        return
    setattr(core, name, lambda: None)
    try:
        yield
    finally:
        setattr(core, name, original)
