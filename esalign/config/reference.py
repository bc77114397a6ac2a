"""The configuration's reference page and a commented file to start from, both generated from the schema."""

import sys
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from esalign.config.run import RunConfig
from esalign.config.sections import Section

EXAMPLE = {  # values of the commented file that have no default, or that a first run wants
    "model.path": "Qwen/Qwen2.5-0.5B-Instruct",
    "model.adapter": "adapters/sft",
    "data.source": "openai/gsm8k",
    "data.config": "main",
    "data.template": r'"{prompt}\nPlease reason step by step and place your final answer in \\boxed{{}}."',
    "rewards": "[{name: math}]",
    "sampling.max_tokens": "512",
    "run.name": "my-run",
}


def commented_config() -> str:
    """Return a YAML file with every key, its default and what it means."""
    lines = ["# A run of esalign. Check it with `esalign run THIS --dry-run`; keys that are commented out have this"]
    lines += ["# default. `esalign run THIS run.generations=10` changes single values.", ""]
    lines += _yaml(RunConfig, "", 0)
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the reference page, Markdown."""
    parts = ["# Configuration", ""]
    parts += ["Generated from the schema: `python -m esalign.config.reference > docs/configuration.md`.", ""]
    parts += [(RunConfig.__doc__ or "").strip(), "", "Unknown keys are errors at every level. Several YAML files merge"]
    parts += ["from left to right, and `section.key=value` on the command line wins over them.", ""]
    for name, field in RunConfig.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            continue
        note = "list of:" if str(field.annotation).startswith("tuple") else ""
        parts += [f"## `{name}`", "", f"{(section.__doc__ or '').splitlines()[0]} {note}".strip(), ""]
        parts += ["| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [f"| `{row[0]}` | {row[1]} | {row[2]} | {row[3]} |" for row in _rows(section)]
        parts.append("")
    return "\n".join(parts)


def _yaml(section: type[Section], path: str, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, field in section.model_fields.items():
        key = f"{path}{name}"
        inner = _section(field.annotation)
        if key in EXAMPLE:
            yield f"{pad}{name}: {EXAMPLE[key]}{_comment(field)}"
        elif inner is not None and field.default is not None and not str(field.annotation).startswith("tuple"):
            yield f"{pad}{name}:  # {(inner.__doc__ or '').splitlines()[0]}"
            yield from _yaml(inner, f"{key}.", depth + 1)
        else:
            yield f"{pad}# {name}: {_default(field)}{_comment(field)}"


def _comment(field: Any) -> str:
    return f"  # {field.description}" if field.description else ""


def _rows(section: type[Section]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        default = "required" if field.is_required() else f"`{_default(field)}`"
        kind = str(getattr(field.annotation, "__name__", field.annotation)).replace("esalign.config.sections.", "")
        yield name, kind.replace("typing.", "").replace("|", "or"), default, field.description or ""


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined or value is None:
        return "null"
    if value == ():
        return "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _section(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in getattr(annotation, "__args__", ()) if (found := _section(inner))), None)


if __name__ == "__main__":
    sys.stdout.write(reference())
