"""Who tells the user how a run goes, and what he is told of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from esalign.config.sections import RunSection


@dataclass(frozen=True)
class About:
    """What people are told of a run.

    Args:
        kind: ``search`` or ``distillation``, which decides the words.
        description: what a step does, e.g. ``24 candidates x 100 problems each, cma-es on torch``.
        limits: how long it may go on.
        max_tokens: the most tokens of one completion.
    """

    kind: str
    description: str
    limits: RunSection
    max_tokens: int

    @property
    def step(self) -> str:
        """What one step is called."""
        return "generation" if self.kind == "search" else "update"


class Reporter(Protocol):
    """Who tells the user how a run goes."""

    def start(self, about: About, folder: Path, done: int) -> None:
        """Say that a run begins, or goes on after so many generations."""

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what goes on now, outside the search; with a total above 0, how far it is."""

    def generation(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a finished generation, or of the start (generation 0)."""

    def warn(self, text: str) -> None:
        """Say what the user should know."""
