"""Console output: printable characters, tables and progress.

A terminal gets rich's colours, lines and live bars; a file or a pipe gets aligned text and
occasional progress lines.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

MAX_NAMED = 8
MAX_CELL = 1000  # characters
SHORTEST_MEASURED = 0.1  # seconds, for a rate
LINE_SECONDS = 10.0  # between plain progress lines
COLOURS = {
    'ok': 'green',
    'note': 'cyan',
    'warning': 'yellow',
    'problem': 'red',
    'error': 'bold red',
}


def printable(text: str) -> str:
    """Escape unprintable characters except line breaks."""
    if text.isprintable():
        return text
    return ''.join(each if each == '\n' or each.isprintable() else _escape(each) for each in text)


def few(items: Sequence[Any]) -> str:
    """List the first of many items."""
    named = ', '.join(map(str, items[:MAX_NAMED]))
    return f'{named}, ...' if len(items) > MAX_NAMED else named


def _escape(character: str) -> str:
    return character.encode('unicode_escape').decode()


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    stream: TextIO | None = None,
) -> None:
    """Print a table.

    Args:
        title: Title above the table; empty for none.
        columns: Column headings.
        rows: Cells of each row; a cell that is a key of ``COLOURS`` colours the row.
        stream: Output stream; standard output by default.
    """
    out = stream or sys.stdout
    cells = [[cut(printable(str(cell))) for cell in row] for row in rows]
    if out.isatty():
        _print_rich(title, columns, cells, out)
    else:
        print(format_table(title, columns, cells), file=out)


def cut(text: str) -> str:
    """Truncate text that is too long for a table cell."""
    return text if len(text) <= MAX_CELL else f'{text[:MAX_CELL]}...'


def format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as plain text; the last column is not padded."""
    table = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table
    ]
    rule = '-' * min(max(map(len, lines)), shutil.get_terminal_size((100, 24)).columns)
    return '\n'.join([*([title] if title else []), lines[0], rule, *lines[1:]])


def _print_rich(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO
) -> None:
    table = Table(*columns, title=title or None, title_justify='left')
    for row in rows:
        colour = next((COLOURS[cell] for cell in row if cell in COLOURS), '')
        # Text, because rich would parse square brackets in a string as markup.
        table.add_row(*(Text(cell, style=colour if cell in COLOURS else '') for cell in row))
    Console(file=out).print(table)


class Progress:
    """Progress of counted steps; a context manager.

    Args:
        total: Number of steps.
        unit: Plural name of a step, such as 'images'.
        show: Show progress.
        terminal: Show a live bar; None: if standard error is a terminal.
    """

    def __init__(
        self, total: int, unit: str, show: bool = True, terminal: bool | None = None
    ) -> None:
        self.total, self.unit, self.show, self.done = total, unit, show, 0
        live = sys.stderr.isatty() if terminal is None else terminal
        self._bar = live_bar() if show and live else None
        self._task = self._bar.add_task(unit, total=total) if self._bar else None

    def __enter__(self) -> Progress:
        self._began = self._told = time.monotonic()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self.show and kind is None and self.total > 1:
            print(self._line(time.monotonic()), file=sys.stderr)

    def advance(self, steps: int = 1) -> None:
        """Count steps, raising the total if exceeded, as for a video with a wrong header."""
        self.done += steps
        self.total = max(self.total, self.done)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)
            return
        now = time.monotonic()
        if self.show and now - self._told >= LINE_SECONDS and self.done < self.total:
            self._told = now
            print(self._line(now), file=sys.stderr, flush=True)

    def tell(self, text: str) -> None:
        """Print a result to standard output without tearing the bar."""
        text = printable(text)
        if self._bar and sys.stdout.isatty():
            self.say(text)
        else:
            print(text)

    def say(self, text: str) -> None:
        """Print a line to standard error without tearing the bar."""
        text = printable(text)
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        seconds = max(now - self._began, 1e-9)
        text = f'{self.done}/{self.total} {self.unit}'
        if seconds >= SHORTEST_MEASURED:
            text += f', {self.done / seconds:,.1f} a second'
        if 0 < self.done < self.total:
            left = (self.total - self.done) * seconds / self.done
            return f'{text}, {_duration(left)} left'
        return f'{text}, {_duration(seconds)} in all'


class ProgressCalls:
    """Progress bars driven by calls ``(unit, done, total)``; a context manager.

    A bar starts with the first call for its unit, so work that is already done shows none.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def __call__(self, unit: str, done: int, total: int) -> None:
        """Update the bar of a unit."""
        if self._bar is None:
            self._bar = Progress(total, unit)
            self._bar.__enter__()
        self._bar.advance(done - self._bar.done)
        if done >= total:
            self._close(None)

    def __enter__(self) -> ProgressCalls:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(kind)

    def _close(self, kind: type[BaseException] | None) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, None, None)
            self._bar = None


def live_bar(auto_refresh: bool = True) -> RichProgress:
    """Return a bar on standard error, not yet started.

    Args:
        auto_refresh: Redraw in a thread; False: only in calls of ``refresh``.
    """
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('left:'),
        TimeRemainingColumn(),
    )
    return RichProgress(*columns, console=Console(stderr=True), auto_refresh=auto_refresh)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes:02d} min'
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'
