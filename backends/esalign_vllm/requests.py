"""Running requests through vLLM's engine, each completion handed on as soon as it is finished."""

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


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
    """
    open_keys: dict[str, Any] = {}
    try:
        for number, request in enumerate(requests):
            name = str(number)
            open_keys[name] = request.key
            engine.add_request(
                name,
                {"type": "token", "prompt_token_ids": request.ids},
                request.parameters,
                lora_request=request.adapter,
            )
        while engine.has_unfinished_requests():
            with around_step():
                outputs = engine.step()
            for output in outputs:
                if output.finished:
                    on_finished(open_keys.pop(output.request_id), output)
    finally:
        if open_keys:  # interrupted: what is left would run on in the next call
            engine.abort_request(list(open_keys))
