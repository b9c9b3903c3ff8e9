"""The bar of trainings and tests: below the log lines in a terminal, and nothing elsewhere."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop

from gfl_det.engine.hooks import ProgressHook
from gfl_det.engine.runner import Runner, build_runner
from gfl_det.utils.console import ProgressCalls
from tests.helpers.commands import shown_by


class Handler(logging.StreamHandler):
    """As mmengine's: it holds the stream that it was made with."""


@pytest.fixture
def runner():
    handler = Handler(sys.stdout)
    logger = logging.Logger('runner')
    logger.addHandler(handler)
    loop = object.__new__(EpochBasedTrainLoop)
    return SimpleNamespace(
        rank=0, iter=0, epoch=0, max_iters=4, max_epochs=2, train_loop=loop, logger=logger,
        val_dataloader=[0] * 3, test_dataloader=[0] * 5,
    )  # fmt: skip


def train(hook: ProgressHook, runner: SimpleNamespace) -> None:
    runner.logger.handlers[0].setStream(sys.stdout)  # pytest's, which is another in fixtures
    hook.before_train(runner)
    for step in range(4):
        runner.iter, runner.epoch = step, step // 2
        runner.logger.info('line of step %d', step)
        hook.after_train_iter(runner, step % 2)
        if step % 2:
            hook.before_val_epoch(runner)
            for batch in range(3):
                hook.after_val_iter(runner, batch)
            print('a table')
            hook.after_val_epoch(runner)
    hook.after_train(runner)


def test_a_terminal_has_a_bar_and_whole_lines(runner, capsys, monkeypatch) -> None:
    monkeypatch.setattr('gfl_det.engine.hooks.console.REDRAW_SECONDS', 0)
    out = sys.stdout
    train(ProgressHook(terminal=True), runner)
    printed, shown = capsys.readouterr()
    assert 'epoch 2/2' in shown
    assert '4/4' in shown
    # What was logged meanwhile went above the bar, and the streams are as before.
    lines = shown.splitlines()
    assert [each for each in lines if each.startswith('line of')] == [
        f'line of step {step}' for step in range(4)
    ]
    assert printed == 'a table\na table\n'
    assert runner.logger.handlers[0].stream is out
    assert sys.stdout is out


def test_elsewhere_nothing_is_touched(runner, capsys) -> None:
    for hook in (ProgressHook(), ProgressHook(terminal=False)):
        train(hook, runner)
    runner.rank = 1
    train(ProgressHook(terminal=True), runner)
    found = capsys.readouterr()
    assert found.err == ''
    assert found.out.count('line of step') == 12


def test_a_test_alone_has_a_bar(runner, capsys) -> None:
    hook = ProgressHook(terminal=True)
    hook.before_test_epoch(runner)
    for batch in range(5):
        hook.after_test_iter(runner, batch)
    hook.after_test_epoch(runner)
    assert '5/5' in capsys.readouterr().err


def test_the_tools_add_it_in_a_terminal_alone(monkeypatch) -> None:
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: cfg)
    assert 'custom_hooks' not in build_runner(Config({}))
    monkeypatch.setattr('gfl_det.engine.runner.has_terminal', lambda: True)
    assert build_runner(Config({})).custom_hooks == [dict(type='gfl_det.ProgressHook')]


SCRIPT = """
import sys, os
from types import SimpleNamespace
import logging, gfl_det
from gfl_det.hooks import ProgressHook
logger = logging.Logger('x'); logger.addHandler(logging.StreamHandler(sys.stdout))
runner = SimpleNamespace(rank=0, test_dataloader=[0] * 9, logger=logger)
hook = ProgressHook()
hook.before_test_epoch(runner)
child = os.fork()
if not child:
    print('from a worker', flush=True)
    os._exit(0)
os.waitpid(child, 0)
logger.info('a line')
hook.after_test_iter(runner, 1)
raise SystemExit('error: the end')
"""


def test_after_an_error_the_terminal_is_as_before(tmp_path: Path) -> None:
    """In a real terminal: the cursor comes back, and a forked worker prints as it always did."""
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    shown = shown_by(path, TERM='xterm')
    assert b'from a worker' in shown
    assert b'a line' in shown
    assert b'error: the end' in shown
    assert shown.rindex(b'\x1b[?25h') > shown.rindex(b'\x1b[?25l')


def test_calls_become_lines(capsys) -> None:
    with ProgressCalls() as told:
        for unit in ('boxes', 'pyramids'):
            for done in (1, 2, 3):
                told(unit, done, 3)
    with ProgressCalls() as told:
        told('boxes', 1, 3)
        told.__exit__(KeyError, KeyError(), None)  # of work that failed no line is told
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(',')[0] for line in lines] == ['3/3 boxes', '3/3 pyramids']
