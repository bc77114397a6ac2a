"""Training, validation and test problems that never overlap."""

import json
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from esalign.config.sections import Source
from esalign.data.examples import Dataset, build_dataset, is_task, load_dataset, source_rows
from esalign.errors import DataError
from esalign.seeds import Use, generator
from esalign.types import Example, Prompt


@dataclass(frozen=True)
class Splits:
    """Problems by what they are for. No problem is in two of them.

    Args:
        train: what the search sees.
        validation: chooses the best mean.
        test: read only for the start and the final result.
        duplicates: problems that were left out because they came more than once, or were held out.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    duplicates: int = 0


@dataclass
class _Pool:
    """The problems of one source that no split has taken yet, each once."""

    source: Source
    seed: int
    generated: int = 0
    waiting: list[Example] = field(default_factory=list)
    keys: set[Hashable] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    duplicates: int = 0
    name: str = ""

    def fill(self, size: int | None) -> None:
        """Have at least ``size`` problems waiting, where the source has so many; None is all of a file."""
        if is_task(self.source):
            self._generate(size or 500)
        elif not self.generated:
            data = build_dataset(source_rows(self.source, size=None, seed=self.seed), self.source)
            order = generator(self.seed, Use.SPLITS).permutation(len(data.examples))
            self._add(data, [data.examples[index] for index in order])

    def _generate(self, size: int) -> None:
        """Generate until enough problems differ, or hardly any new one comes."""
        while len(self.waiting) < size:
            before, chunk = len(self.waiting), max(size - len(self.waiting), 256)
            rows = source_rows(self.source, size=chunk, seed=self.seed, start=self.generated)
            data = build_dataset(rows, self.source)
            self._add(data, data.examples)
            if len(self.waiting) - before < chunk / 50:
                return

    def _add(self, data: Dataset, examples: Sequence[Example]) -> None:
        self.name, self.aliases = data.name, dict(data.aliases)
        self.generated += len(examples)
        for example in examples:
            key = problem_key(example)
            if key in self.keys:
                self.duplicates += 1
            else:
                self.keys.add(key)
                self.waiting.append(example)

    def take(self, size: int | None) -> Dataset:
        count = len(self.waiting) if size is None else size
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return Dataset(self.name, tuple(taken), self.aliases)


def make_splits(
    source: Source,
    *,
    train_size: int | None = None,
    validation_size: int = 256,
    test_size: int = 1000,
    validation: Source | None = None,
    test: Source | None = None,
    seed: int = 0,
) -> Splits:
    """Return training, validation and test problems that never overlap.

    What has no source of its own is carved from the main one after a seeded shuffle, test first, then validation, so
    that neither changes with the size of the training set. There, a problem that comes more than once is kept once.
    Sources of their own must not overlap: which of two copies was meant cannot be known.

    Args:
        source: the main source.
        train_size: number of training problems; None takes all that are left (500 from a task).
        validation_size: number of validation problems.
        test_size: number of test problems.
        validation: source of the validation problems; None carves them from the main one.
        test: source of the test problems; None carves them from the main one.
        seed: decides the shuffle, samples of the separate sources, and what a task generates.

    Raises:
        DataError: too few different problems, sources that overlap, and all that `load_dataset` raises.
    """
    pool = _Pool(source, seed)
    carved = (0 if test else test_size) + (0 if validation else validation_size)
    wanted = carved + (train_size or (500 if is_task(source) else 1))
    pool.fill(wanted)
    if len(pool.waiting) < wanted:
        raise DataError(
            f"'{source.source}' gives {len(pool.waiting)} different problems, fewer than the {wanted} asked for "
            f"({train_size or 'the rest'} training, {validation_size} validation, {test_size} test); "
            "ask for fewer" + (", or widen data.options" if is_task(source) else "")
        )
    test_set = load_dataset(test, size=test_size, seed=seed) if test else pool.take(test_size)
    validation_set = (
        load_dataset(validation, size=validation_size, seed=seed) if validation else pool.take(validation_size)
    )
    splits = Splits(pool.take(train_size), validation_set, test_set, pool.duplicates)
    refuse_overlap(splits)
    return splits


def refuse_overlap(splits: Splits) -> None:
    """Raise `DataError` where a problem is in two splits, with a count and an example."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    keys = {name: {problem_key(example): example for example in data.examples} for name, data in named.items()}
    for first, second in (("train", "test"), ("validation", "test"), ("train", "validation")):
        shared = keys[first].keys() & keys[second].keys()
        if shared:
            example = next(held for key, held in keys[second].items() if key in shared)
            raise DataError(
                f"{len(shared)} problems are in both the {first} ({named[first].name}) and the {second} split "
                f"({named[second].name}), such as {canonical(example.prompt)!r:.120}: give sources that do not "
                "overlap, or carve both from one"
            )


def canonical(prompt: Prompt) -> str:
    r"""Return a prompt's text, so that prompts that differ in white space or Unicode form only are equal.

    >>> canonical("2 + 2\n = ?")
    '2 + 2 = ?'
    """
    text = prompt if isinstance(prompt, str) else json.dumps(list(prompt), ensure_ascii=False, sort_keys=True)
    return " ".join(unicodedata.normalize("NFKC", text).split())


def problem_key(example: Example) -> Hashable:
    """Return what makes two examples the same problem: the prompt's canonical text, or less where a task is known.

    reasoning-gym's Countdown poses one problem in three wordings and in any order of its numbers.
    """
    metadata = example.columns.get("metadata")
    if isinstance(metadata, dict) and metadata.get("source_dataset") == "countdown":
        return ("countdown", tuple(sorted(metadata["numbers"])), metadata["target"])
    return canonical(example.prompt)
