"""Whether a worker computes what others do: only then may it answer."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from esalign.engines.checks import EXACT, ROUNDED
from esalign.engines.cluster.engine import Hello, Kind
from esalign.engines.cluster.workers import Unfit

GRACE = 60.0  # seconds that a worker alone waits for another, with which to agree


@dataclass(frozen=True)
class Candidate:
    """A worker that asks to be admitted.

    Args:
        name: what people call it.
        hello: what it says of itself.
        kind: what it was asked to be.
        since: when it came, in seconds.
    """

    name: str
    hello: Hello
    kind: Kind
    since: float = 0.0


@dataclass
class Admission:
    """Compares workers. The first two that agree are believed, so that a broken one cannot have all others refused.

    Where no other is to come, or none came in time, the first is believed: a run compares it with transformers.

    Args:
        reference: whom all others are compared with; None until there is one.
        waiting: those that are not compared yet, by what they are told apart by.
    """

    reference: Candidate | None = None
    waiting: dict[Hashable, Candidate] = field(default_factory=dict)

    def judge(self, *, more: bool, now: float) -> dict[Hashable, Unfit | None]:
        """Return the verdicts of those that were waiting: None is admitted. Nobody's, while that needs another worker.

        Args:
            more: whether other workers may come.
            now: the time, in seconds.
        """
        if self.reference is None and self.waiting:
            agreed = [a for a, b in combinations(self.waiting.values(), 2) if compare(b, a) is None]
            first = next(iter(self.waiting.values()))
            if not agreed and more and now - first.since < GRACE:
                return {}
            self.reference = agreed[0] if agreed else first
        verdicts = {key: compare(one, self.reference) for key, one in self.waiting.items() if self.reference}
        self.waiting.clear()
        return verdicts


def compare(one: Candidate, reference: Candidate) -> Unfit | None:
    """Return why a worker is refused that is not like another: other versions, space, tokenizer or model; else None."""
    who, hello, first = f"{one.name} is refused", one.hello, reference.hello
    for package in sorted(hello.versions.keys() & first.versions.keys()):
        if hello.versions[package] != first.versions[package]:
            return Unfit(
                f"{who}: it has {package} {hello.versions[package]}, {reference.name} has {first.versions[package]}: "
                "install the same version on all machines"
            )
    if hello.fingerprint != first.fingerprint:
        return Unfit(f"{who}: its search space is another one: the same adapter must be on all machines")
    if hello.ids != first.ids:
        return Unfit(f"{who}: it encodes prompts in another way than {reference.name}")
    off = float(np.abs(hello.scores - first.scores).mean())
    kinds = (one.kind, reference.kind)
    most = EXACT if all(kind.dtype == "float32" and not kind.options.get("quantization") for kind in kinds) else ROUNDED
    if off <= most:
        return None
    return Unfit(
        f"{who}: its log-probabilities of {hello.scores.size} tokens are off from those of {reference.name} by "
        f"{off:.2g} nats on average, more than the {most:g} that rounding explains: is the same model on all "
        "machines, in the same precision?"
    )
