"""Progress: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import pytest

from gfl_det.utils import console
from gfl_det.utils.console import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
    return now


def test_plain_lines_come_now_and_then_and_at_the_end(clock, capsys) -> None:
    with Progress(100, 'images', terminal=False) as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        '20/100 images, 2.0 a second, 40 s left',
        '40/100 images, 2.0 a second, 30 s left',
        '60/100 images, 2.0 a second, 20 s left',
        '80/100 images, 2.0 a second, 10 s left',
        '100/100 images, 2.0 a second, 50 s in all',
    ]


@pytest.mark.parametrize(
    ('seconds', 'text'), [(90, '1 min 30 s'), (59.6, '1 min 00 s'), (7384, '2 h 03 min')]
)
def test_times_are_readable(clock, capsys, seconds: float, text: str) -> None:
    with Progress(2, 'images', terminal=False) as bar:
        clock[0] += seconds
        bar.advance()
    assert capsys.readouterr().err.endswith(f' {text} in all\n') is False
    assert console._duration(seconds) == text


def test_a_wrong_total_grows(clock, capsys) -> None:
    with Progress(3, 'frames', terminal=False) as bar:
        clock[0] += 1
        bar.advance(5)
    assert capsys.readouterr().err == '5/5 frames, 5.0 a second, 1 s in all\n'


def test_work_of_no_time_has_no_rate(clock, capsys) -> None:
    for seconds in (0.01, 0.2):
        with Progress(2400, 'boxes', terminal=False) as bar:
            clock[0] += seconds
            bar.advance(2400)
    err = capsys.readouterr().err
    assert err == '2400/2400 boxes, 0 s in all\n2400/2400 boxes, 12,000.0 a second, 0 s in all\n'


def test_nothing_is_shown_unless_requested(clock, capsys) -> None:
    for bar in (Progress(9, 'images', show=False), Progress(1, 'images', terminal=False)):
        with bar:
            clock[0] += 100
            bar.advance()
    with pytest.raises(KeyError), Progress(9, 'images', terminal=False):
        raise KeyError
    found = capsys.readouterr()
    assert found.out == found.err == ''


def test_a_terminal_shows_a_bar_and_lines_above_it(capsys) -> None:
    with Progress(4, 'images', terminal=True) as bar:
        bar.advance(3)
        bar.say('warning: [red]a.png[/] is torn')
        bar.tell('b.png: 2 boxes')
        bar.advance(2)
    found = capsys.readouterr()
    assert found.out == 'b.png: 2 boxes\n'
    assert 'warning: [red]a.png[/] is torn' in found.err
    assert '5/5' in found.err
