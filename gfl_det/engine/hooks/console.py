"""Console output of a training: header, a line per epoch, progress bar and next commands.

Everything else (config, hooks, environment, every tenth step) is written to the log file only.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import time
from contextlib import ExitStack, redirect_stdout
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.file_proxy import FileProxy
from rich.progress import Progress, TaskID

from gfl_det.registry import HOOKS
from gfl_det.utils.console import live_bar

# Upstream warnings about internals, on which users cannot act.
UPSTREAM = (
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'Failed to search registry with scope',
    'The prefix is not set in metric class',
    'is an instance of BaseModel',
)
# Lines of a test run for the log file only; tables and warnings are still printed.
NOISE = (
    'System environment:',
    'Config:\n',
    'Hooks will be executed',
    'paramwise_options',
    'Exp name:',
    'eta: ',
    'Load checkpoint from',
    'Evaluating ',
    'Distributed training is not used',
)


def for_people(record: logging.LogRecord, tables: bool = False) -> bool:
    """Whether a log record is also printed to the console.

    Args:
        record: Log record.
        tables: Also print records below warnings, except those of `NOISE`; set in test runs.
    """
    text = record.getMessage()
    if record.levelno >= logging.WARNING:
        return not any(each in text for each in UPSTREAM)
    return tables and not any(each in text for each in NOISE)


@HOOKS.register_module()
class EpochLinesHook(Hook):
    """Prints a header before a training, a line after each epoch, and the best AP at the end.

    Prints only in the first of several processes, and only in trainings by epochs.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._line = ''
        self._began = 0.0
        self._printed, self._text = ExitStack(), io.StringIO()

    def before_train(self, runner: Runner) -> None:
        """Print the header."""
        if runner.rank or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        loader, loop = runner.train_dataloader, runner.train_loop
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        millions = sum(each.numel() for each in model.parameters()) / 1e6
        parts = [type(model).__name__, type(getattr(model, 'backbone', model)).__name__]
        data = f'{len(loader.dataset)} pictures to train on'
        if runner.val_loop is not None:
            data += f', {len(runner.val_loop.dataloader.dataset)} to validate on'
        device = next(model.parameters()).device
        threads = f', {torch.get_num_threads()} threads' if device.type == 'cpu' else ''
        steps = f'{loop.max_epochs} epochs of {len(loader)} steps'
        for name, value in (
            ('data', data),
            ('model', f'{", ".join(dict.fromkeys(parts))}, {millions:.1f} M parameters'),
            ('schedule', f'{steps}, validated every {loop.val_interval}'),
            ('device', f'{device}{threads}'),
            ('log', os.path.relpath(runner.logger.log_file or runner.log_dir)),
        ):
            print(f'{name:9} {value}', flush=True)

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the timer of an epoch."""
        self._began = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        """Print the line of an epoch, or keep it until the epoch is validated."""
        loop = runner.train_loop
        if runner.rank or not isinstance(loop, EpochBasedTrainLoop):
            return
        steps, epoch = len(runner.train_dataloader), runner.epoch + 1
        scalars = runner.message_hub.log_scalars
        losses = {
            name.partition('/')[2]: scalars[name].mean(steps)
            for name in scalars
            if name.startswith('train/loss')
        }
        shown = ', '.join(f'{name} {value:.3f}' for name, value in losses.items())
        seconds = time.monotonic() - self._began
        self._line = f'epoch {epoch}/{loop.max_epochs}: {shown}, {seconds:.0f} s'
        validated = epoch >= loop.val_begin and (
            epoch % loop.val_interval == 0 or epoch == loop.max_epochs
        )
        if runner.val_loop is None or not validated:
            self._print_line()

    def before_val_epoch(self, runner: Runner) -> None:
        """Redirect the output of metrics to the log file."""
        if self._line:
            self._printed = ExitStack()
            self._text = self._printed.enter_context(redirect_stdout(io.StringIO()))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the kept line with the validation metrics."""
        self._printed.close()
        if runner.rank or not self._line:
            return
        if self._text.getvalue().strip():
            runner.logger.info('\n%s', self._text.getvalue().rstrip())
        found = ', '.join(_told(metrics or {}))
        self._line += f'; {found}' if found else ''
        self._print_line()

    def after_train(self, runner: Runner) -> None:
        """Print the best AP and the next two commands."""
        if runner.rank or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        hub: dict[str, Any] = runner.message_hub.runtime_info
        if 'best_score' in hub:
            print(f'best AP   {hub["best_score"]:.3f}, {os.path.relpath(hub["best_ckpt"])}')
        folder = os.path.relpath(runner.work_dir)
        print(f'next      gfl-det report {folder}')
        print(f'          gfl-det infer {folder} PICTURES --show-dir drawn', flush=True)

    def _print_line(self) -> None:
        print(self._line, flush=True)
        self._line = ''


def _told(metrics: dict[str, float]) -> list[str]:
    """Lines with AP under the metrics' keys, and mmdet's copypaste line of COCO's six numbers."""
    found = [
        f'{name}: {value:.4f}'
        for name, value in metrics.items()
        if name.rpartition('/')[2] in ('bbox_mAP', 'mAP', 'AP50')
    ]
    six = [f'coco/bbox_mAP{end}' for end in ('', '_50', '_75', '_s', '_m', '_l')]
    if metrics.keys() >= {*six}:
        row = ' '.join(f'{metrics[name]:.3f}' for name in six)
        found.append(f'bbox_mAP_copypaste: {row}')
    return found


# --- Progress bar ---------------------------------------------------------------------------------

REDRAW_SECONDS = 0.1


def has_terminal() -> bool:
    """Whether all output of this process goes to a terminal rather than to files or pipes."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@HOOKS.register_module()
class ProgressHook(Hook):
    """Progress bar of training, validation and test, with the remaining time.

    The bar is the last line of the terminal; log lines and tables scroll above it. The hook does
    nothing if standard output or standard error is not a terminal, or in processes other than the
    first; mmengine's log lines then show the progress.

    Args:
        terminal: Whether to show a bar; None: only in a terminal.
    """

    priority = 'VERY_LOW'

    def __init__(self, terminal: bool | None = None) -> None:
        self._wanted = has_terminal() if terminal is None else terminal
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._streams: list[tuple[logging.StreamHandler, Any]] = []
        self._drawn = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start the bar at the iteration to resume from."""
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
        """Start a bar for validation, below the training bar if there is one."""
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
        # Drawn by this thread only: another thread could hold a lock while a worker is forked.
        plain = sys.stdout, sys.stderr
        self._bar = live_bar(auto_refresh=False)
        self._bar.start()
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in plain:
                proxy = FileProxy(self._bar.console, handler.stream)
                self._streams.append((handler, handler.setStream(proxy)))
        atexit.register(self._close)  # mmengine leaves the cursor hidden after errors

        def in_child() -> None:  # workers write to the original streams
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
