"""Changes that a swap makes, with their reasons, as a list and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH = 96


class Change(NamedTuple):
    """One change of a config."""

    path: str  # dotted, in the config
    before: str
    after: str
    reason: str


def format_changes(changes: Sequence[Change]) -> str:
    """The changes as text, a few lines each; all of every value."""
    lines = []
    for path, before, after, reason in changes:
        line = f'{path}: {before} -> {after}'
        if len(line) + 2 <= WIDTH:
            lines.append(f'  {line}')
        else:
            lines += _wrapped(f'{path}: {before}', '  ') + _wrapped(f'-> {after}', '      ')
        lines += _wrapped(f'({reason})', '      ')
    return '\n'.join(lines)


def differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """The settings in which two configs differ, as text before and after."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    before, after = (
        ', '.join(f'{key}={plain(config[key])}' for key in keys if key in config)
        for config in (old, new)
    )
    return before or 'none', after or 'none'


def plain(value: object) -> str:
    """A value on one line: a part as ``Type(setting=...)``."""
    if value is None:
        return 'none'
    if isinstance(value, dict):
        settings = ', '.join(
            f'{key}={plain(item)}' for key, item in value.items() if key not in ('type', '_scope_')
        )
        return f'{type_name(value["type"]) if "type" in value else ""}({settings})'
    if isinstance(value, (list, tuple)) and any(isinstance(each, dict) for each in value):
        return ' + '.join(map(plain, value))
    return type_name(value) if isinstance(value, type) else str(value)


def type_name(kind: object) -> str:
    """The name of a part's type, which is a string or, in Python-style configs, the class."""
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f'{indent}    ',
        break_long_words=False,
        break_on_hyphens=False,
    )
