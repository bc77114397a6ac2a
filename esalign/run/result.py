"""How a run ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from esalign.run.statistics import Estimate
from esalign.types import Sample


@dataclass(frozen=True)
class Comparison:
    """The start and the result on the same held-out problems."""

    start: Estimate
    result: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Result:
    """How a run ended; the learner is the result from then on.

    Args:
        reason: why it stopped.
        generation: the generation whose state is the result; 0 is the start itself.
        comparisons: by held-out set, e.g. ``test/greedy``; the first is the headline.
        samples: what the result completes on a few test problems.
        kl: KL to the start, nats per token; None where it was not measured.
        totals: tokens, seconds and memory.
        share: of the way from the start to the state of that generation, where the result lies. Below 1, sampled
            completions earned less than at the start farther on.
        sampled_gains: by the shares that were tried, what sampled completions of the validation problems earned more
            than at the start.
    """

    reason: str
    generation: int
    comparisons: Mapping[str, Comparison]
    samples: tuple[Sample, ...]
    kl: float | None
    totals: Mapping[str, Any]
    share: float = field(default=1.0, kw_only=True)
    sampled_gains: Mapping[float, Estimate] = field(default_factory=dict, kw_only=True)
