"""How far a run is, and what that took."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esalign.types import Array, State


@dataclass
class Progress:
    """What a run knows beside its learner; all of it goes into the checkpoint."""

    done: int = 0
    best_generation: int = 0
    best: State = field(default_factory=dict)
    best_scores: Array = field(default_factory=lambda: np.zeros(0))
    stale: int = 0
    flat: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    scored_tokens: int = 0
    held_out_tokens: int = 0
    search_seconds: float = 0.0
    held_out_seconds: float = 0.0
    start: State = field(default_factory=dict)
    start_validation: Array = field(default_factory=lambda: np.zeros(0))
    start_scores: dict[str, Array] = field(default_factory=dict)
    validated: int = 0

    def totals(self) -> dict[str, Any]:
        """Return tokens so far, and apart under ``machine`` what depends on the machine and is not reproducible."""
        return {
            "tokens": {
                "generated": self.generated_tokens,
                "prompt": self.prompt_tokens,
                "scored": self.scored_tokens,
                "held_out": self.held_out_tokens,
            },
            "machine": {
                "search_seconds": round(self.search_seconds, 3),
                "held_out_seconds": round(self.held_out_seconds, 3),
                "tokens_per_second": round(self.generated_tokens / max(self.search_seconds, 1e-9), 1),
                **peak_memory(),
            },
        }


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process so far, in MiB: resident, and on the GPU where there is one."""
    peak = {"peak_rss_mib": round(_peak_resident(), 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def _peak_resident() -> float:
    """Return the most main memory that this process held at once, in MiB."""
    with suppress(OSError, StopIteration):  # Linux, whose ru_maxrss is at least what the process that started us held
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
