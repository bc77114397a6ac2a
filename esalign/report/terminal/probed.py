"""What `esalign probe` prints."""

from typing import TYPE_CHECKING

from esalign.report.terminal.tables import make_table, show_fact
from esalign.report.words import duration, number

if TYPE_CHECKING:
    from rich.console import Console

    from esalign.run.signal import Probed

HEADS = ("changed", "broken", "reward", "mirrored", "signal", "luck", "flat")
CAPTION = (
    "changed: completions that differ from the start's; broken: empty, cut or repeating themselves; mirrored: "
    "correlation of the rewards of x and -x; signal: standard deviation between candidates that is no luck; luck: the "
    "rest, with {} prompts; flat: probability that {} prompts tell no candidates apart"
)


def show_probe(console: "Console", probed: "Probed") -> None:
    """Print a row for each step size, then the proposal as overrides, and what it would take."""
    from rich.text import Text

    proposal, prompts = probed.proposal, probed.prompts
    table = make_table("sigma", HEADS, CAPTION.format(prompts, proposal.prompts))
    table.add_row("start", "", f"{probed.signals[0].step.broken_at_start:.0%}", number(probed.start))
    for one in probed.signals:
        cells = (
            f"{one.step.sigma:g}",
            f"{one.step.changed:.0%}",
            f"{one.step.broken:.0%}",
            number(one.reward),
            number(one.mirrored, "+.2f"),
            number(one.variance**0.5) + ("" if one.clear else ", not clear"),
            number(one.luck**0.5),
            number(one.flat(proposal.prompts), ".0%"),
        )
        style = "bold green" if one.step.sigma == proposal.sigma else ""
        table.add_row(*(Text(cell, style) for cell in cells))
    console.print()
    console.print(table)
    console.print()
    show_fact(console, "try", probed.overrides)
    size = f"{probed.generations} generations of {proposal.population} candidates x {proposal.prompts} problems"
    about = f"at least about {duration(probed.seconds)}" if probed.adapts else f"about {duration(probed.seconds)}"
    show_fact(console, "time", f"{about} of search for {size}; judgements come on top")
    for text in probed.concerns:
        show_fact(console, "warning", text, "yellow")
