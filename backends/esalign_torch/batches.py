"""How work is cut into batches that fit the memory and, on a CPU, the cache."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

CPU_ROWS = 256
CUDA_ROWS = 4096
CPU_TOKENS = 1024  # their tables stay in the second-level cache
CUDA_TOKENS = 65536
LOGIT_BYTES = 20  # a logit, the copy of drawn rows, its float32 copy, and the sampler's two tables
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Limits:
    """What one batch may hold.

    Args:
        rows: sequences decoded together, whatever their length.
        tokens: tokens of one parallel pass (reading prompts, scoring).
        logits: numbers of one table of logits.
        cache_tokens: tokens whose keys and values are kept at once.
    """

    rows: int
    tokens: int
    logits: int
    cache_tokens: int

    def rows_for(self, length: int) -> int:
        """Return how many sequences of at most so many tokens may be decoded together, at least 1."""
        return max(1, min(self.rows, self.cache_tokens // length))

    def halved(self, rows: int) -> "Limits":
        """Return limits for another try, after the memory ran out with at most so many rows."""
        return Limits(
            rows=max(1, min(self.rows, rows) // 2),
            tokens=max(1, self.tokens // 2),
            logits=max(1, self.logits // 2),
            cache_tokens=max(1, self.cache_tokens // 2),
        )


def make_limits(
    device: torch.device,
    *,
    kv_bytes: int,
    token_bytes: int,
    vocab: int,
    memory_gb: float | None,
    max_rows: int | None,
) -> Limits:
    """Return the limits for a device.

    They depend on the machine and the model, not on what happens to be free now: the same call is cut the same way
    each time, so that a resumed run repeats an uninterrupted one bit by bit.

    Args:
        device: where the model is.
        kv_bytes: keys and values of one token, in all layers.
        token_bytes: what one token takes on its way through a layer.
        vocab: number of logits of one token.
        memory_gb: memory for batches; None for half of what the machine has beside the weights.
        max_rows: the most sequences of one batch; None for a limit that suits the device.
    """
    budget = int(memory_gb * 1e9) if memory_gb is not None else int(MEMORY_SHARE * _total_memory(device))
    on_cpu = device.type == "cpu"
    logits = max(vocab, budget // 4 // LOGIT_BYTES)
    # As much again is left for buffers that grow, joined rows that get longer, and what the allocator keeps.
    cache = budget // 4
    return Limits(
        rows=max_rows or min(CPU_ROWS if on_cpu else CUDA_ROWS, logits // vocab),
        tokens=max(1, min(CPU_TOKENS if on_cpu else CUDA_TOKENS, budget // 4 // token_bytes)),
        logits=logits,
        cache_tokens=max(1, cache // kv_bytes),
    )


def _total_memory(device: torch.device) -> int:
    """Return the bytes that the device has for batches: all, less the weights that are already there on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, _cgroup_limit() or physical)


def _cgroup_limit() -> int | None:
    """Return the memory limit of this process's container, if there is one."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


def even_share(total: int, most: int) -> int:
    """Return the size of the first part, when total is cut into the fewest parts of at most the given size.

    >>> even_share(10, 4)
    4
    >>> even_share(600, 512)
    300
    """
    parts = -(-total // most)
    return -(-total // parts)
