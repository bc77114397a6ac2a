"""Reading a configuration from YAML files and ``a.b=value`` overrides, with errors in one line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from esalign.config.sections import Section, section_in
from esalign.errors import ConfigError
from esalign.registry import did_you_mean

C = TypeVar("C", bound=Section)


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = (), *, schema: type[C]) -> C:
    """Read YAML files, the later over the earlier, then ``a.b=value`` overrides, into a schema.

    Raises:
        ConfigError: naming the file or the override, the path of the key, and what was expected.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = merge(merged, read_yaml(file))
    for override in overrides:
        merged = merge(merged, parse_override(override))
    # A section whose keys are all commented out reads as null, and means its defaults.
    sections = {key: value for key, value in merged.items() if value is not None}
    try:
        return schema.model_validate(sections)
    except ValidationError as error:
        # A mistyped key is often the cause of a missing one, so it is told first.
        details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        said = [override for override in overrides if _is_about(override, details[0]["loc"])]
        source = ", ".join(said or map(str, files)) or "configuration"
        raise ConfigError(f"{source}: {_describe(details, schema)}") from None


def _is_about(override: str, path: Sequence[str | int]) -> bool:
    """Return whether an override sets what is at a path, a part of it, or what it is part of."""
    own = override.partition("=")[0].split(".")
    return bool(path) and all(part == str(other) for part, other in zip(own, path, strict=False))


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read one YAML file that holds a mapping."""
    import yaml

    try:
        content = _load_yaml(Path(file).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"no configuration file '{file}': write one with `esalign init`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{file}': {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"'{file}' is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"'{file}' holds a {type(content).__name__}, expected sections such as 'model:' and 'data:'")
    return content


def _load_yaml(text: str) -> Any:
    """Read YAML; a key that is given twice, of which YAML readers silently keep the last, is refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key.value, str):  # a list or mapping as a key, which the reader itself refuses
                    continue
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    # YAML 1.1 takes 1e-3, without a point, for text.
    number = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return yaml.load(text, Loader)  # noqa: S506  (a safe loader)


def parse_override(text: str) -> dict[str, Any]:
    """Read ``a.b=value``, the value as YAML, into nested dictionaries."""
    import yaml

    key, sign, value = text.partition("=")
    parts = key.split(".")
    if not sign or not all(parts):
        raise ConfigError(f"cannot read the override {text!r}, expected section.key=value")
    try:
        nested: Any = _load_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(f"the value of the override {text!r} is not valid YAML") from None
    for part in reversed(parts):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return base with top laid over it; mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def leaves(value: Any, path: str = "", *, between: str = ".") -> dict[str, Any]:
    """Return the values of nested mappings, and of lists of mappings, by the paths of their keys.

    >>> leaves({"run": {"seed": 0}, "rewards": [{"name": "math"}]})
    {'run.seed': 0, 'rewards.0.name': 'math'}
    """
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        inner = dict(enumerate(value))
    if not inner:
        return {path: value}
    found: dict[str, Any] = {}
    for key, part in inner.items():
        found |= leaves(part, f"{path}{between}{key}" if path else str(key), between=between)
    return found


def _describe(details: Sequence[Any], schema: type[Section]) -> str:
    """Return the first mistake in one line: the key's path, what was got, what was expected; and how many follow."""
    first = details[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(schema, first["loc"][:-1])
        hint = did_you_mean(str(first["loc"][-1]), known) or f", expected one of {', '.join(known)}"
        if "options" in known and "did you mean" not in hint:
            hint += "; what the plug-in itself takes stands under 'options'"
        message = f"unknown key '{path}'{hint}"
    elif first["type"] == "missing":
        message = f"'{path}' is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        text = text[0].lower() + text[1:]
        message = f"'{path}' is {first['input']!r}, {text}" if path else text
    more = len(details) - 1
    return message + (f" (and {more} more mistake{'s' if more > 1 else ''})" if more else "")


def _keys_at(schema: type[Section], path: Sequence[str | int]) -> list[str]:
    """Return the keys that the section at a path of the schema knows."""
    section: type[Section] = schema
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)
