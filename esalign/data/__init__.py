"""Problems: where they come from, how they are split, and the seeded mini-batches of a run."""

from esalign.config.sections import Source
from esalign.data.batches import MiniBatches
from esalign.data.examples import Dataset, build_dataset, load_dataset, load_examples
from esalign.data.notes import Note
from esalign.data.splits import Splits, canonical, make_splits, problem_key

__all__ = [
    "Dataset",
    "MiniBatches",
    "Note",
    "Source",
    "Splits",
    "build_dataset",
    "canonical",
    "load_dataset",
    "load_examples",
    "make_splits",
    "problem_key",
]
