"""Student and teacher pairs on the spot: tiny random models of one tokenizer."""

from pathlib import Path
from typing import Any

from models import make_model

from esalign.distill.models import make_pair
from esalign.distill.rollout import Pair
from esalign.engines.loading import LoadedModel


def make_pair_folders(folder: Path, architecture: str = "llama", **teacher: Any) -> tuple[Path, Path]:
    """Write a random student and another random teacher, whose keyword arguments change it. Returns both folders."""
    student = make_model(folder / "student", architecture, seed=1, initializer_range=0.1)
    return student, make_model(folder / "teacher", architecture, **({"seed": 2, "initializer_range": 0.1} | teacher))


def load(folder: Path) -> tuple[Any, Any]:
    """Return a model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def load_pair(folders: tuple[Path, Path]) -> Pair:
    """Return the two models with what they share."""
    student, teacher = (
        LoadedModel(*load(folder), label=role) for folder, role in zip(folders, ("student", "teacher"), strict=True)
    )
    return make_pair(student, teacher)
