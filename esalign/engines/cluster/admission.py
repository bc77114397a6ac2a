"""Whether a worker computes what the first one does: only then may it answer."""

import numpy as np

from esalign.engines.checks import EXACT, ROUNDED
from esalign.engines.cluster.engine import Hello, Kind
from esalign.engines.cluster.workers import Unfit


def examine(worker: int, hello: Hello, first: Hello, kinds: tuple[Kind, ...]) -> None:
    """Compare what a worker says of itself with what the first one said.

    Args:
        worker: its number, for errors.
        hello: what it says.
        first: what the first one said.
        kinds: what both engines were asked to be.

    Raises:
        Unfit: another version, space, tokenizer or model.
    """
    who = f"worker {worker} ({hello.kind}) is refused"
    for package in sorted(hello.versions.keys() & first.versions.keys()):
        if hello.versions[package] != first.versions[package]:
            raise Unfit(
                f"{who}: it has {package} {hello.versions[package]}, the first worker has {first.versions[package]}: "
                "install the same version on all machines"
            )
    if hello.fingerprint != first.fingerprint:
        raise Unfit(f"{who}: its search space is another one: the same adapter must be on all machines")
    if hello.ids != first.ids:
        raise Unfit(f"{who}: it encodes prompts in another way than the first worker, {first.kind}")
    off = float(np.abs(hello.scores - first.scores).mean())
    most = EXACT if all(kind.dtype == "float32" and not kind.options.get("quantization") for kind in kinds) else ROUNDED
    if not off <= most:
        raise Unfit(
            f"{who}: its log-probabilities of {hello.scores.size} tokens are off from those of the first worker, "
            f"{first.kind}, by {off:.2g} nats on average, more than the {most:g} that rounding explains: is the same "
            "model on all machines, in the same precision?"
        )
