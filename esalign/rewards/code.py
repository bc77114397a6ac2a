"""The code of a reward: its files, and its sources as they are sent to a machine that lacks them."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import pickle
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from esalign import registry
from esalign.errors import RewardError
from esalign.rewards.load import Reward, load_reward

_PACKAGE = 5  # what modulefinder calls a package
_MAIN = "__main__"  # and a file that it is given


def find_code(reward: str) -> Iterator[Path]:
    """Yield the files of a reward's code: its own, and what it imports from beside it; of a package, those beside."""
    if reward in registry.names(registry.REWARDS):
        yield from _beside(Path(inspect.getfile(registry.find(registry.REWARDS, reward))))
    elif (modules := _find_modules(reward)) is not None:
        yield from sorted({Path(found.__file__) for found in modules.values() if found.__file__})
    else:
        yield from _beside(_file_of(reward.rpartition(":")[0]))


def pack_with_code(rewards: Sequence[Reward]) -> bytes:
    """Return rewards as bytes, for a scoring process of another machine to load them.

    Files and modules of the user go along as sources, with what they import from beside them. What is installed does
    not: a registered reward, a package.

    Raises:
        RewardError: a reward that cannot be sent, as it is a function, or has no source.
    """
    sources: dict[str, Source] = {}
    sent = [(_add(reward, sources), dict(reward.options)) for reward in rewards]
    return pickle.dumps(_Parcel(tuple(sent), sources))


@dataclass(frozen=True)
class Source:
    """A module's source.

    Args:
        text: empty of a folder without ``__init__.py``.
        file: where it was found.
        is_package: whether other modules are in it.
    """

    text: str
    file: str
    is_package: bool


@dataclass(frozen=True)
class _Parcel:
    """Rewards, each as what to load it from and its options, and the sources; loaded, it is the rewards."""

    rewards: tuple[tuple[str, dict[str, Any]], ...]
    sources: Mapping[str, Source]

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.rewards, self.sources)


def _open(rewards: Sequence[tuple[str, dict[str, Any]]], sources: Mapping[str, Source]) -> tuple[Reward, ...]:
    sys.meta_path.append(_Importer(sources))  # the last, as folders of rewards are the last in the path
    return tuple(load_reward(spec, **options) for spec, options in rewards)


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Imports modules from their sources."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        """Return how to import a module, if its source is here."""
        del path, target
        return importlib.util.spec_from_loader(name, self) if name in self._sources else None

    def get_source(self, name: str) -> str:
        """Return a module's source."""
        return self._sources[name].text

    def get_filename(self, name: str) -> str:
        """Return where the source was found, on the machine of the run."""
        return self._sources[name].file

    def is_package(self, name: str) -> bool:
        """Say whether other modules are in it."""
        return self._sources[name].is_package


def _add(reward: Reward, sources: dict[str, Source]) -> str:
    """Add the sources of a reward. Returns what to load it from where they are.

    Raises:
        RewardError: it cannot be sent.
    """
    spec = reward.spec
    if not isinstance(spec, str):
        raise RewardError(
            f"reward {reward.name!r} is a function of this process and cannot be sent to other machines: put it into a "
            "file and pass 'file.py:function', or score on the run's own machine (scoring.place=run)"
        )
    modules = None if spec in registry.names(registry.REWARDS) else _find_modules(spec)
    if modules is None:
        return spec
    place, _, attribute = spec.rpartition(":")
    for name, found in modules.items():
        if name != _MAIN and (found.__file__ or found.__path__):
            sources[name] = _read(reward, found.__file__, is_package=found.__path__ is not None)
    if _MAIN in modules:
        file = str(modules[_MAIN].__file__)
        stem = place = f"esalign_reward_{Path(file).stem}"
        while place in sources and sources[place].file != file:  # another folder's of the same name
            place = f"{stem}_{len(sources)}"
        sources[place] = _read(reward, file, is_package=False)
    return f"{place}:{attribute}"


def _read(reward: Reward, file: str | None, *, is_package: bool) -> Source:
    if file is None:
        return Source("", "", is_package)
    if not file.endswith(".py"):
        raise RewardError(
            f"reward {reward.name!r} cannot be sent to other machines, as '{file}' is no Python source: install it on "
            "all of them, or score on the run's own machine (scoring.place=run)"
        )
    return Source(importlib.util.decode_source(Path(file).read_bytes()), file, is_package)


def _find_modules(spec: str) -> dict[str, Any] | None:
    """Return the modules, by name, that a reward of a file or a module consists of; None of what is installed."""
    place = spec.rpartition(":")[0]
    is_file = place.endswith(".py")
    file = Path(place).expanduser().resolve() if is_file else _file_of(place)
    root = file.parents[0 if is_file else place.count(".") + (file.name == "__init__.py")]
    if not is_file and any(file.is_relative_to(folder) for folder in sysconfig.get_paths().values()):
        return None
    finder = _Finder([str(root)])
    finder.run_script(str(file)) if is_file else finder.import_hook(place)
    return finder.modules


def _file_of(module: str) -> Path:
    return Path(inspect.getfile(importlib.import_module(module)))


def _beside(file: Path) -> list[Path]:
    """Return a module's file, and those beside it where it is of a package."""
    return sorted(file.parent.glob("*.py")) if (file.parent / "__init__.py").exists() else [file]


class _Finder(ModuleFinder):
    """Finds what code imports, also in folders that have no ``__init__.py``, which its base cannot enter."""

    modules: dict[str, Any]

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        try:
            return super().find_module(name, path, parent)
        except AttributeError:  # as the base meets such a folder
            folder = next(Path(place) / name for place in path or self.path if (Path(place) / name).is_dir())
            return None, str(folder), ("", "", _PACKAGE)

    def load_package(self, fqname: str, pathname: str) -> Any:
        if (Path(pathname) / "__init__.py").exists():
            return super().load_package(fqname, pathname)
        module: Any = self.add_module(fqname)
        module.__path__ = [pathname]
        return module
