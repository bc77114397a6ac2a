"""The reference pages of every configuration and a commented file to start from, all generated from the schemas."""

import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from esalign.config.distill import DistillConfig
from esalign.config.run import RunConfig
from esalign.config.sections import LONGEST_NAME, Section, section_in
from esalign.config.sft import SftConfig

PAGES: dict[str, tuple[str, type[Section]]] = {  # command -> page below docs/, schema
    "run": ("configuration.md", RunConfig),
    "distill": ("configuration/distill.md", DistillConfig),
    "sft": ("configuration/sft.md", SftConfig),
}

EXAMPLE = {  # values of the commented file that have no default, or that a first run wants
    "model.path": "Qwen/Qwen2.5-0.5B-Instruct",
    "model.adapter": "adapters/sft",
    "data.source": "openai/gsm8k",
    "data.config": "main",
    "data.template": r'"{prompt}\nPlease reason step by step and place your final answer in \\boxed{{}}."',
    "rewards": "[{name: math}]",
    "sampling.max_tokens": "512",
}


def commented_config(name: str = "my-run") -> str:
    """Return a YAML file with every key, its default and what it means; name is that of its runs, as far as one can."""
    run = re.sub(r"[^\w.-]+", "-", name).lstrip("-.")[: LONGEST_NAME // 4] or "my-run"
    lines = ["# A run of esalign. Check it with `esalign run THIS --dry-run`; keys that are commented out have this"]
    lines += ["# default. `esalign run THIS run.generations=10` changes single values.", ""]
    lines += _yaml(RunConfig, "", 0, {**EXAMPLE, "run.name": f'"{run}"'})
    return "\n".join(lines) + "\n"


def reference(command: str = "run") -> str:
    """Return the reference page of a command's configuration, Markdown.

    Args:
        command: ``run``, ``distill`` or ``sft``.
    """
    page, schema = PAGES[command]
    parts = [f"# Configuration of `esalign {command}`", ""]
    parts += ["Generated from the schema: `python -m esalign.config.reference docs` writes these pages.", ""]
    parts += [(schema.__doc__ or "").strip(), ""]
    parts += [
        "Unknown keys are errors at every level. Several YAML files merge from left to right, and `section.key=value`"
    ]
    parts += ["on the command line wins over them.", ""]
    if command != "sft":
        parts += [f"What may change when a run is resumed: [runs]({'../' * page.count('/')}runs.md#resume).", ""]
    sections = {name: found for name, field in schema.model_fields.items() if (found := section_in(field.annotation))}
    if len(sections) < len(schema.model_fields):
        parts += ["## Keys without a section", "", *_table(schema, leave_out=sections), ""]
    for name, section in sections.items():
        parts += [f"## `{name}`", "", _about(schema.model_fields[name], section), "", *_table(section), ""]
    return "\n".join(parts)


def _write_pages(docs: Path) -> None:
    """Write all reference pages below the folder of the documentation."""
    for command, (page, _) in PAGES.items():
        (docs / page).parent.mkdir(parents=True, exist_ok=True)
        (docs / page).write_text(reference(command))


def _about(field: Any, section: type[Section]) -> str:
    """Return what a section is, in a line."""
    text = (section.__doc__ or "").splitlines()[0]
    if get_origin(field.annotation) is tuple:
        text = f"A list; each entry: {text[0].lower()}{text[1:]}"
    default = field.default if isinstance(field.default, Section) else None
    changed = {key: getattr(default, key) for key in sorted(default.model_fields_set)} if default else {}
    own = ", ".join(f"`{key}` is {value} here" for key, value in changed.items())
    needed = "Required." if field.is_required() else "May be left out." if default is None else ""
    return " ".join(part for part in (text, field.description, f"{own[:1]}{own[1:]}." if own else "", needed) if part)


def _table(section: type[Section], leave_out: Any = ()) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in sorted(section.model_fields.items(), key=lambda item: not item[1].is_required()):
        if name not in leave_out:
            default = "required" if field.is_required() else f"`{_default(field)}`"
            meaning = (field.description or "").replace("<", "&lt;")
            yield f"| `{name}` | {_kind(field.annotation)} | {default} | {meaning} |"


def _kind(annotation: Any) -> str:
    """Return a type in words.

    >>> _kind(int | None), _kind(tuple[str, ...]), _kind(Literal["a", "b"])
    ('int or null', 'list of str', '`a`, `b`')
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_kind, inner))
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if hasattr(annotation, "__metadata__"):  # typing.Annotated
        return _kind(inner[0])
    found = section_in(annotation)
    name = f"the keys of `{found.__name__.removesuffix('Section').lower()}`" if found else annotation.__name__
    return "mapping" if origin is dict else str(name).replace("NoneType", "null")


def _yaml(section: type[Section], path: str, depth: int, values: Mapping[str, str]) -> Iterator[str]:
    pad = "  " * depth
    for name, field in section.model_fields.items():
        key = f"{path}{name}"
        inner = section_in(field.annotation)
        if key in values:
            yield f"{pad}{name}: {values[key]}{_comment(field)}"
        elif inner is not None and field.default is not None and not str(field.annotation).startswith("tuple"):
            yield f"{pad}{name}:  # {(inner.__doc__ or '').splitlines()[0]}"
            yield from _yaml(inner, f"{key}.", depth + 1, values)
        else:
            yield f"{pad}# {name}: {_default(field)}{_comment(field)}"


def _comment(field: Any) -> str:
    return f"  # {field.description}" if field.description else ""


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    if sys.argv[1:]:
        _write_pages(Path(sys.argv[1]))
    else:
        sys.stdout.write(reference())
