"""Stop strings that hold a special token, which the text of a completion does not show: a check for every engine."""

from typing import Any

import numpy as np

from esalign.types import Completion, Sampling


def check_special_stops(backend: Any, tokenizer: Any, prompts: list[str], *, dim: int = 0) -> None:
    """Let a random model write, and stop it at special tokens that it wrote, alone and with the text before or behind.

    Args:
        backend: an engine of a model that writes special tokens now and then.
        tokenizer: the transformers tokenizer of the model.
        prompts: what to complete.
        dim: length of a search vector.
    """
    start, many = np.zeros((1, dim)), Sampling(max_tokens=48, temperature=1.5, seed=3)

    def shown(ids: Any, *, special: bool = True) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=not special))

    def complete(stop: str) -> list[Completion]:
        sampling = Sampling(max_tokens=48, temperature=1.5, seed=3, stop=(stop, "never in any text"))
        [row] = backend.generate(start, prompts, sampling)
        return list(row)

    [whole] = backend.generate(start, prompts, many)
    ids = next(
        (one.token_ids[: at + 2], at)
        for one in whole
        for at, token in enumerate(one.token_ids[:-2])
        if at and shown([token]) and not shown([token], special=False) and shown([one.token_ids[at + 1]]).isascii()
    )
    (_, special, behind), at = ids[0][-3:], ids[1]
    name = shown([special])
    for stop, length in ((name, 1), (name + shown([behind]), 2)):
        stopped = 0
        for one, before in zip(complete(stop), whole, strict=True):
            ends = [n for n in range(1, len(before.token_ids) + 1) if stop in shown(before.token_ids[:n])]
            if not ends:
                assert one == before
                continue
            stopped += 1
            assert one.token_ids == before.token_ids[: ends[0]]
            assert one.finish_reason == "stop"
            assert one.text == shown(before.token_ids[: ends[0] - length], special=False)
        assert stopped, (stop, at)
