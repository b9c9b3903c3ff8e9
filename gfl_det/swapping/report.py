"""What a swap changes, and why, as a list and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH = 96
LIMIT = 70  # characters of a value


class Change(NamedTuple):
    """One change of a config."""

    path: str  # dotted, in the config
    before: str
    after: str
    reason: str


def format_changes(changes: Sequence[Change]) -> str:
    """The changes as text, a few lines each."""
    lines = []
    for change in changes:
        lines += _wrapped(f'{change.path}: {change.before} -> {change.after}', '  ')
        lines += _wrapped(f'({change.reason})', '      ')
    return '\n'.join(lines)


def differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """The settings in which two configs differ, as text before and after."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    before, after = (
        ', '.join(f'{key}={shorten(config[key])}' for key in keys if key in config)
        for config in (old, new)
    )
    return before or 'none', after or 'none'


def shorten(value: object) -> str:
    """A value on one line: a part as ``Type(setting=...)``, cut where it is long."""
    if value is None:
        return 'none'
    if isinstance(value, dict):
        settings = ', '.join(
            f'{key}={shorten(item)}'
            for key, item in value.items()
            if key not in ('type', '_scope_')
        )
        text = f'{type_name(value["type"])}({settings})' if 'type' in value else f'({settings})'
    elif isinstance(value, (list, tuple)) and any(isinstance(each, dict) for each in value):
        text = ' + '.join(map(shorten, value))
    elif isinstance(value, type):
        text = type_name(value)
    else:
        text = str(value)
    return text if len(text) <= LIMIT else f'{text[: LIMIT - 3]}...'


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
