"""Running requests through vLLM's engine, each completion handed on as soon as it is finished."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from esalign.errors import BackendError


@dataclass(frozen=True)
class Request:
    """One sequence to generate or to score.

    Args:
        key: what the caller knows it by.
        ids: token ids of the prompt.
        parameters: vLLM's SamplingParams.
        adapter: vLLM's LoRARequest.
    """

    key: Hashable
    ids: list[int]
    parameters: Any
    adapter: Any


def run_requests(
    engine: Any,
    requests: Iterable[Request],
    on_finished: Callable[[Any, Any], None],
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Run requests to the end, all in one batch as far as the engine's memory reaches.

    Args:
        engine: vLLM's LLMEngine.
        requests: what to run.
        on_finished: called with a request's key and vLLM's output, in the order in which they finish.
        around_step: entered around each of the engine's steps.

    Raises:
        BackendError: vLLM fails.
    """
    open_keys: dict[str, Any] = {}
    try:
        for number, request in enumerate(requests):
            name = str(number)
            open_keys[name] = request.key
            with told_in_one_line():
                engine.add_request(
                    name,
                    {"type": "token", "prompt_token_ids": request.ids},
                    request.parameters,
                    lora_request=request.adapter,
                )
        while engine.has_unfinished_requests():
            with told_in_one_line(), around_step():
                outputs = engine.step()
            for output in outputs:
                if output.finished:
                    on_finished(open_keys.pop(output.request_id), output)
    finally:
        if open_keys:  # interrupted: what is left would run on in the next call
            engine.abort_request(list(open_keys))


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Raise as `BackendError` what vLLM raises: some models and adapters it takes at its start and fails with later."""
    try:
        yield
    except (OSError, MemoryError):  # of the machine
        raise
    except Exception as error:
        advice = "use backend 'torch' or 'llama-cpp' for this model and adapter"
        raise BackendError(f"vLLM failed: {type(error).__name__}: {reason(error)}; {advice}") from error


def reason(error: BaseException) -> str:
    """Return what an error of vLLM says, in one line."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    findings = [line.partition(" [type=")[0] for line in lines if " [type=" in line]  # as pydantic words them
    return " ".join((findings or lines)[:1]).removeprefix("Value error, ")[:300] or type(error).__name__
