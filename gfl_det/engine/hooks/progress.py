"""Progress bar below the log lines of a training or test."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.file_proxy import FileProxy
from rich.progress import Progress, TaskID

from gfl_det.registry import HOOKS
from gfl_det.utils.console import live_bar

REDRAW_SECONDS = 0.1


def has_terminal() -> bool:
    """Whether all output of this process goes to a terminal, not to files or pipes."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows the progress of training, validation and test, and the time left, in a terminal.

    The bar is the last line of the terminal; log lines and tables scroll above it. If standard
    output or standard error is not a terminal, and in all processes but the first, the hook does
    nothing: mmengine's log lines show the progress.

    Args:
        terminal: Show a bar; None: only in a terminal.
    """

    priority = 'VERY_LOW'

    def __init__(self, terminal: bool | None = None) -> None:
        self._wanted = has_terminal() if terminal is None else terminal
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._streams: list[tuple[logging.StreamHandler, Any]] = []
        self._drawn = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start at the iteration to continue from."""
        self._begin(runner, 'train', runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Count an iteration."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        text = f'epoch {runner.epoch + 1}/{runner.max_epochs}' if by_epoch else 'training'
        self._count('train', runner.iter + 1, text)

    def after_train(self, runner: Runner) -> None:
        """Remove the bar."""
        self._end('train')

    def before_val_epoch(self, runner: Runner) -> None:
        """Start a bar for validation, below the one for training if there is one."""
        self._begin(runner, 'validation', len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._count('validation', batch_idx + 1)

    def after_val_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Remove the bar for validation."""
        self._end('validation')

    def before_test_epoch(self, runner: Runner) -> None:
        """Start a bar for the test."""
        self._begin(runner, 'test', len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._count('test', batch_idx + 1)

    def after_test_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self._end('test')

    def _begin(self, runner: Runner, name: str, total: int, done: int = 0) -> None:
        if not self._wanted or runner.rank:
            return
        if self._bar is None:
            self._open(runner)
        assert self._bar is not None
        self._tasks[name] = self._bar.add_task(name, total=total, completed=done)
        self._bar.refresh()

    def _count(self, name: str, done: int, text: str | None = None) -> None:
        if self._bar is None or name not in self._tasks:
            return
        self._bar.update(self._tasks[name], completed=done, description=text)
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._bar.refresh()

    def _end(self, name: str) -> None:
        if self._bar is None or name not in self._tasks:
            return
        if len(self._tasks) == 1:
            self._close()
        else:
            self._bar.remove_task(self._tasks[name])
            self._bar.refresh()
        self._tasks.pop(name)

    def _open(self, runner: Runner) -> None:
        # Drawn by this thread only: another could hold a lock while a worker is forked.
        plain = sys.stdout, sys.stderr
        self._bar = live_bar(auto_refresh=False)
        self._bar.start()
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in plain:
                proxy = FileProxy(self._bar.console, handler.stream)
                self._streams.append((handler, handler.setStream(proxy)))
        atexit.register(self._close)  # mmengine leaves the cursor hidden after errors

        def in_child() -> None:  # a worker writes as it always did
            if self._bar is not None:
                self._restore()
                self._bar = None
                sys.stdout, sys.stderr = plain

        os.register_at_fork(after_in_child=in_child)

    def _restore(self) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()

    def _close(self) -> None:
        if self._bar is not None:
            self._restore()
            self._bar.stop()
            self._bar = None
            atexit.unregister(self._close)
