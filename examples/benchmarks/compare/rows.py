"""The rows of the comparison: what each does, as `esalign run` configurations where it is one."""

from dataclasses import dataclass
from pathlib import Path

from problems import TASKS, find_adapter, pose

from esalign.assets import EMBEDDED, asset
from esalign.config.reading import load_config
from esalign.config.run import RunConfig

SAME = ("scoring.workers=0", "run.generations=1000000")
"""For every row: one process, so that its time and memory are its own, and no end but the budget's."""


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        name: what the command line calls it.
        kind: how it is trained: start, search, raw-lora, full-es, grpo or grpo-singular.
        title: what the table calls it.
        overrides: laid over quickstart.yaml.
        options: of GRPO and of full-parameter ES.
    """

    name: str
    kind: str
    title: str
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def optimizer(name: str, *more: str) -> tuple[str, ...]:
    """Return the overrides that choose an optimiser."""
    return (f"optimizer.name={name}", *more)


USER_DEFAULTS = ("fitness=", "optimizer=")
"""Sections of quickstart.yaml that the defaults' row leaves out; a section without a value means its defaults."""

OPTIONS = {
    **dict.fromkeys(("grpo", "grpo-singular"), ("lr", "group", "batch", "iterations")),
    "full-es": ("sigma", "step", "members"),
}
"""Options of the trainers, by a row's kind."""

GRPO_SWEEP = tuple((f"lr={rate}", f"group={size}") for size in (8, 16) for rate in ("1e-3", "3e-3", "1e-2"))
"""What GRPO is tried with; validation problems choose."""

ROWS = {
    row.name: row
    for row in (
        Row("start", "start", "SFT start"),
        Row("grpo", "grpo", "GRPO (TRL), LoRA rank 8", options=("lr=3e-3", "group=8")),
        Row("grpo-singular", "grpo-singular", "GRPO on singular values", options=("lr=1e-1", "group=8")),
        Row(
            "cma-es", "search", "ESSA, CMA-ES (diagonal)", optimizer("cma-es", "optimizer.options.covariance=diagonal")
        ),
        Row("cma-es-full", "search", "ESSA, CMA-ES (full)", optimizer("cma-es", "optimizer.options.covariance=full")),
        Row("openai-es", "search", "ESSA, OpenAI-ES", optimizer("openai-es", "optimizer.options.learning_rate=0.1")),
        Row("ng-DiagonalCMA", "search", "ESSA, nevergrad DiagonalCMA", optimizer("nevergrad:DiagonalCMA")),
        Row("ng-TBPSA", "search", "ESSA, nevergrad TBPSA", optimizer("nevergrad:TBPSA")),
        Row("ng-TwoPointsDE", "search", "ESSA, nevergrad TwoPointsDE", optimizer("nevergrad:TwoPointsDE")),
        Row("random-search", "search", "ESSA, random search", optimizer("random-search")),
        Row(
            "surrogate",
            "search",
            "surrogate ESSA",
            (
                "fitness.name=surrogate",
                "fitness.prompts=48",
                "fitness.samples=4",
                "optimizer.sigma=1",
                "run.keep_sampled=false",
            ),
        ),
        Row(
            "raw-lora",
            "raw-lora",
            "ES on raw LoRA factors",
            optimizer("openai-es", "optimizer.sigma=0.3", "optimizer.options.learning_rate=0.15"),
        ),
        Row("full-es", "full-es", "full-parameter ES", options=("sigma=2e-2", "step=1e-2", "members=24")),
        Row("defaults", "search", "ESSA, nothing set", USER_DEFAULTS),
    )
}


def make_config(
    row: Row, folder: Path, *, task: str = "countdown", seed: int = 0, extra: tuple[str, ...] = (), device: str = "cpu"
) -> RunConfig:
    """Return the row's configuration, with the problems that lie in a folder of results."""
    here = (f"backend.device={device}", f"run.seed={seed}")
    overrides = (*SAME, *TASKS[task].overrides, *here, *row.overrides, *split_extra(extra)[0])
    config = load_config([asset("quickstart.yaml")], overrides, schema=RunConfig)
    update = {"data": pose(task, seed, folder)}
    if config.model.adapter == EMBEDDED:  # a row may search the model alone, or start from an adapter of its own
        update["model"] = config.model.model_copy(update={"adapter": find_adapter(task, folder)})
    return config.model_copy(update=update)


def split_extra(extra: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return overrides of the configuration, whose keys have a section, and options of a trainer, whose keys do not."""
    sections = tuple(text for text in extra if "." in text.partition("=")[0])
    return sections, tuple(text for text in extra if text not in sections)


def make_options(row: Row, task: str, extra: tuple[str, ...] = ()) -> dict[str, float]:
    """Return the trainer's options, the later over the earlier."""
    texts = (*row.options, *TASKS[task].options.get(row.name, ()), *split_extra(extra)[1])
    pairs = [text.partition("=") for text in texts]
    return {key: float(value) for key, _, value in pairs}


def label(row: Row, extra: tuple[str, ...]) -> str:
    """Return the name of a row's variant, e.g. ``grpo+lr=3e-4``."""
    return "+".join([row.name, *extra])
