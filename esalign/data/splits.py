"""Training, validation and test problems that never overlap."""

import json
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from esalign.config.sections import Source
from esalign.data.examples import Dataset, build_dataset, is_task, load_dataset, source_rows
from esalign.data.notes import Note, part_of
from esalign.errors import DataError
from esalign.seeds import Use, generator
from esalign.types import Example, Prompt


@dataclass(frozen=True)
class Splits:
    """Problems by what they are for. No prompt is in two of them.

    Args:
        train: what the search sees.
        validation: chooses the best mean.
        test: read only for the start and the final result.
        duplicates: rows that were left out because prompt and columns came before.
        notes: what was dropped, changed, cut or assumed, for the user to see.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    duplicates: int = 0
    notes: tuple[Note, ...] = ()


@dataclass
class _Pool:
    """The problems of one source that no split has taken yet, by their prompts: equal prompts stay together."""

    source: Source
    seed: int
    taken: frozenset[Hashable] = frozenset()  # by splits of other sources
    read: int = 0
    waiting: dict[Hashable, list[Example]] = field(default_factory=dict)
    seen: dict[Hashable, dict[str, Example]] = field(default_factory=dict)
    data: Dataset = field(default_factory=lambda: Dataset("", ()))
    duplicates: int = 0
    overlapping: int = 0
    torn: int = 0
    variants: int = 0
    differing: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    def fill(self, size: int | None) -> None:
        """Have at least ``size`` problems waiting, where the source has so many; None is all of a file."""
        if is_task(self.source):
            self._generate(size or 500)
        elif not self.read:
            data = build_dataset(source_rows(self.source, size=None, seed=self.seed), self.source)
            order = generator(self.seed, Use.SPLITS).permutation(len(data.examples))
            self._add(data, [data.examples[index] for index in order])

    def _generate(self, size: int) -> None:
        """Generate until enough problems differ, or hardly any new one comes."""
        while len(self) < size:
            before, chunk = len(self), max(size - len(self), 256)
            rows = source_rows(self.source, size=chunk, seed=self.seed, start=self.read)
            data = build_dataset(rows, self.source, numbers=range(self.read, self.read + len(rows)))
            self._add(data, data.examples)
            if len(self) - before < chunk / 50:
                return

    def _add(self, data: Dataset, examples: Sequence[Example]) -> None:
        self.data = replace(data, examples=())
        self.read += len(examples)
        for example in examples:
            key = problem_key(example)
            if key in self.taken:
                self.overlapping += 1
                continue
            columns = "" if is_task(self.source) else _canonical_json(example.columns)
            alike = self.seen.setdefault(key, {})
            if columns in alike:
                self.duplicates += 1
                continue
            if alike:
                self.variants += 1
                self.differing |= _differing(example, next(iter(alike.values())))
            alike[columns] = example
            self.waiting.setdefault(key, []).append(example)

    def take(self, size: int | None) -> Dataset:
        """Take problems, those of one prompt together; where that does not come out even, the rest of one goes."""
        wanted = len(self) if size is None else size
        taken: list[Example] = []
        for key in list(self.waiting):
            if len(self.waiting[key]) <= wanted - len(taken):
                taken += self.waiting.pop(key)
        if len(taken) < wanted and self.waiting:
            group = self.waiting.pop(min(self.waiting, key=lambda key: len(self.waiting[key])))
            self.torn += len(group) - (wanted - len(taken))
            taken += group[: wanted - len(taken)]
        return replace(self.data, examples=tuple(taken))

    def notes(self, train_size: int | None) -> Iterable[Note]:
        """Yield what happened to the rows of the source."""
        of, task = f"of '{self.source.source}'", is_task(self.source)
        yield from self.data.notes
        rows = part_of(self.duplicates, range(self.read))
        if self.duplicates and task:
            yield Note("assumed", f"{rows} {of} were generated before: each problem is taken once")
        elif self.duplicates:
            yield Note("dropped", f"{rows} {of}: equal to another in prompt and columns")
        if self.overlapping:
            rows = part_of(self.overlapping, range(self.read))
            yield Note("dropped", f"{rows} {of}: a separate source of validation or test problems has their prompt")
        if self.variants:
            differing = ", ".join(repr(name) for name in sorted(self.differing))
            yield Note(
                "assumed",
                f"{part_of(self.variants, range(self.read))} {of} have another's prompt and differ in {differing}: all "
                "are kept as problems, equal prompts in one split",
            )
        if self.torn:
            yield Note(
                "dropped", f"{part_of(self.torn, range(self.read))} {of}: their prompt is in a split that is full"
            )
        if len(self) and not task:
            yield Note(
                "cut", f"{part_of(len(self), range(self.read))} {of} are in no split, as train_size is {train_size}"
            )


def make_splits(
    source: Source,
    *,
    train_size: int | None = None,
    validation_size: int = 256,
    test_size: int = 1000,
    validation: Source | None = None,
    test: Source | None = None,
    overlap: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
) -> Splits:
    """Return training, validation and test problems that never overlap.

    What has no source of its own is carved from the main one after a seeded shuffle, test first, then validation, so
    that neither changes with the size of the training set. There, of rows that are equal in prompt and columns one is
    kept; rows that share only the prompt stay in one split. Sources of their own must not overlap, as which of two
    copies was meant cannot be known; or ``overlap`` says that it is theirs, and not the main one's.

    Args:
        source: the main source.
        train_size: number of training problems; None takes all that are left (500 from a task).
        validation_size: number of validation problems.
        test_size: number of test problems.
        validation: source of the validation problems; None carves them from the main one.
        test: source of the test problems; None carves them from the main one.
        overlap: what happens to problems of the main source that a source of their own has, too.
        seed: decides the shuffle, samples of the separate sources, and what a task generates.

    Raises:
        DataError: too few different problems, sources that overlap, and all that `load_dataset` raises.
    """
    own = {
        name: load_dataset(part, size=size, seed=seed, key=f"data.{name}_size")
        for name, part, size in (("validation", validation, validation_size), ("test", test, test_size))
        if part is not None
    }
    taken = [problem_key(example) for data in own.values() for example in data.examples]
    pool = _Pool(source, seed, frozenset(taken if overlap == "drop" else ()))
    carved = (0 if test else test_size) + (0 if validation else validation_size)
    wanted = carved + (train_size or (500 if is_task(source) else 1))
    pool.fill(wanted)
    sizes = f"({train_size or 'the rest'} training, {validation_size} validation, {test_size} test)"
    if len(pool) < wanted:
        raise DataError(
            f"'{source.source}' gives {len(pool)} different problems, fewer than the {wanted} asked for {sizes}; "
            "ask for fewer by data.validation_size and data.test_size"
            + (", or widen data.options" if is_task(source) else "")
        )
    test_set = own.get("test") or pool.take(test_size)
    validation_set = own.get("validation") or pool.take(validation_size)
    train_set = pool.take(train_size)
    if len(train_set.examples) < (train_size or 1):
        raise DataError(
            f"'{source.source}' has too many rows with equal prompts: {len(train_set.examples)} are left to train on "
            f"when no prompt may be in two splits {sizes}; ask for fewer, or make the prompts differ with data.template"
        )
    apart = [note for data in own.values() for note in (*data.alias_notes, *data.notes)]
    notes = dict.fromkeys((*pool.notes(train_size), *apart))  # each once, where a file is named twice
    splits = Splits(train_set, validation_set, test_set, pool.duplicates, tuple(notes))
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
                "overlap, carve both from one, or leave them out of the training problems with data.overlap: drop"
            )


def canonical(prompt: Prompt) -> str:
    r"""Return a prompt's text, equal for prompts that a reader would take for one.

    Not told apart: composed and decomposed characters of Unicode, blanks where lines end, and how many blanks stand
    within a line. Told apart: ``5²`` and ``52``, and code that differs in indentation.

    >>> canonical("2  + 2 \r\n  = ?\n")
    '2 + 2\n  = ?'
    """
    return _canonical_text(prompt) if isinstance(prompt, str) else _canonical_json(list(prompt))


def _canonical_text(text: str) -> str:
    lines = [line.rstrip() for line in unicodedata.normalize("NFC", text).splitlines()]
    return "\n".join(_INNER_BLANKS.sub(" ", line) for line in lines).strip("\n")


_INNER_BLANKS = re.compile(r"(?<=\S)\s+")


def _canonical_json(value: Any) -> str:
    return json.dumps(_canonical_values(value), ensure_ascii=False, sort_keys=True, default=str)


def _canonical_values(value: Any) -> Any:
    if isinstance(value, str):
        return _canonical_text(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical_values(inner) for key, inner in value.items()}
    return [_canonical_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def _differing(one: Example, other: Example) -> set[str]:
    """Return the columns in which two problems differ."""
    names = one.columns.keys() | other.columns.keys()
    return {
        name for name in names if _canonical_json(one.columns.get(name)) != _canonical_json(other.columns.get(name))
    }


def problem_key(example: Example) -> Hashable:
    """Return what makes two examples the same problem: the prompt's canonical text, or less where a task is known.

    reasoning-gym's Countdown poses one problem in three wordings and in any order of its numbers.
    """
    metadata = example.columns.get("metadata")
    if isinstance(metadata, dict) and metadata.get("source_dataset") == "countdown":
        return ("countdown", tuple(sorted(metadata["numbers"])), metadata["target"])
    return canonical(example.prompt)
