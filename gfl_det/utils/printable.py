"""Text from data files, made fit to print: it may hold commands to a terminal, or no characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_NAMED = 8


def printable(text: str) -> str:
    """Write what is no printable character as an escape; ends of lines stay."""
    if text.isprintable():
        return text
    return ''.join(each if each == '\n' or each.isprintable() else _escape(each) for each in text)


def few(items: Sequence[Any]) -> str:
    """Name the first of many things."""
    named = ', '.join(map(str, items[:MAX_NAMED]))
    return f'{named}, ...' if len(items) > MAX_NAMED else named


def _escape(character: str) -> str:
    return character.encode('unicode_escape').decode()
