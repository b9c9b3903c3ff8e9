"""Tables for people: the same cells with colours in a terminal and without them elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from gfl_det.utils.console import MAX_CELL, print_table

ROWS = [('error', '[red]x[/red]'), ('ok', 'a\x1bb'), ('other', 3)]
COLOUR = re.compile(r'\x1b\[[0-9;]*m')


class Terminal(io.StringIO):
    """A stream that says that someone looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    for name in ('NO_COLOR', 'FORCE_COLOR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.setenv('COLUMNS', '100')
    return Terminal()


def test_a_terminal_has_colours_and_takes_no_cell_for_markup(terminal) -> None:
    print_table('Found', ('level', 'what'), ROWS, terminal)
    text = terminal.getvalue()
    assert re.search(r'\x1b\[[0-9;]*31m *error', text)  # red
    assert re.search(r'\x1b\[[0-9;]*32m *ok', text)
    assert not re.search(r'm *other', text)
    plain = COLOUR.sub('', text)
    for part in ('Found', 'level', '[red]x[/red]', 'other', '3'):
        assert part in plain


def test_elsewhere_it_is_aligned_text() -> None:
    stream = io.StringIO()
    print_table('', ('level', 'what'), [*ROWS, ('x', 'y' * 2 * MAX_CELL)], stream)
    lines = stream.getvalue().splitlines()
    assert '\x1b' not in stream.getvalue()
    assert lines[0] == 'level  what'
    assert lines[2:4] == ['error  [red]x[/red]', r'ok     a\x1bb']
    assert lines[5] == f'x      {"y" * MAX_CELL}...'
