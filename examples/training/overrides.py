"""Fields of a dataclass given as text: ``refine.alpha=0.5``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

from mrrcnn.refine import CHOICES

REFINE_OPTION = "refine."


def parse_overrides(config: type, texts: Sequence[str]) -> dict[str, Any]:
    """Values by field of a dataclass from ``["refine.alpha=0.5", ...]``.

    Raises:
        ValueError: no such field, or a value that it cannot have.
    """
    types = get_type_hints(config)
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.startswith(REFINE_OPTION):
            raise ValueError(f"--set must be {REFINE_OPTION}OPTION=VALUE, got {text!r}")
        name = name.removeprefix(REFINE_OPTION)
        if name not in types:
            raise ValueError(f"--set knows {', '.join(types)}; got {name!r}")
        values[name] = _parse_value(name, value.strip(), types[name])
    config(**values)  # raises for a value out of range
    return values


def _parse_value(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    spelled = {"true": True, "false": False, "none": None}
    try:
        value = spelled[text.lower()] if text.lower() in spelled else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if not _is_a(value, kind):
        raise ValueError(f"{REFINE_OPTION}{name} must be {_name(kind)}, got {text!r}")
    return value


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_a, value, parts))
        )
    if get_args(kind):  # a union
        return any(_is_a(value, k) for k in get_args(kind))
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def describe_fields(config: type) -> str:
    """A line for each field of a dataclass: name, default, choices."""
    lines = []
    for f in fields(config):
        assert f.default is not MISSING
        choices = f"  ({', '.join(CHOICES[f.name])})" if f.name in CHOICES else ""
        lines.append(f"  {f.name}={f.default}{choices}")
    return "\n".join(lines)
