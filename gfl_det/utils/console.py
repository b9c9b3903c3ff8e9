"""Tables for people: with colours and lines in a terminal, aligned text anywhere else.

Nothing but Python's own library is needed; rich is used where it is installed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from gfl_det.utils.printable import printable

MAX_CELL = 1000  # characters

COLOURS = {
    'ok': 'green',
    'note': 'cyan',
    'warning': 'yellow',
    'problem': 'red',
    'error': 'bold red',
}


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    stream: TextIO | None = None,
) -> None:
    """Print a table.

    Args:
        title: Above it; empty for none.
        columns: The headings.
        rows: A cell that is a key of `COLOURS` colours its row.
        stream: Where to; standard output by default.
    """
    out = stream or sys.stdout
    cells = [[cut(printable(str(cell))) for cell in row] for row in rows]
    if not (out.isatty() and _print_rich(title, columns, cells, out)):
        print(format_table(title, columns, cells), file=out)


def cut(text: str) -> str:
    """Cut a text that would be no cell any more."""
    return text if len(text) <= MAX_CELL else f'{text[:MAX_CELL]}...'


def format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table as plain text; the last column is as wide as its text."""
    table = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table
    ]
    rule = '-' * min(max(map(len, lines)), shutil.get_terminal_size((100, 24)).columns)
    return '\n'.join([*([title] if title else []), lines[0], rule, *lines[1:]])


def _print_rich(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO
) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(*columns, title=title or None, title_justify='left')
    for row in rows:
        colour = next((COLOURS[cell] for cell in row if cell in COLOURS), '')
        # Text, since what stands in square brackets would be taken for markup.
        table.add_row(*(Text(cell, style=colour if cell in COLOURS else '') for cell in row))
    Console(file=out).print(table)
    return True
