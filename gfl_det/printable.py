"""Text from data files, made fit to print: it may hold commands to a terminal, or no characters."""

from __future__ import annotations


def printable(text: str) -> str:
    """Write what is no printable character as an escape; ends of lines stay."""
    if text.isprintable():
        return text
    return ''.join(each if each == '\n' or each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode('unicode_escape').decode()
