"""A hook that saves and ends a training when a signal asks for it."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gfl_det.engine.hooks.checkpoint import CheckpointHook
from gfl_det.registry import HOOKS

# torchrun hands on a signal that the scheduler has sent to every process as well.
TOGETHER_SECONDS = 5.0


class TrainingStopped(SystemExit):
    """A training has saved its state and ends with status 0, in whatever program it runs."""

    def __init__(self) -> None:
        super().__init__(0)


@HOOKS.register_module()
class StopSignalHook(Hook):
    """On SIGTERM: finish the step, save a checkpoint, end with status 0.

    Schedulers of clusters send SIGTERM some seconds (the grace time) before they kill. Of several
    processes all end after the same step: each tells the others whether it was told to, in a
    reduction over gloo that runs while the step is computed. During a validation what was trained
    is saved at its next batch, and the validation is done again on resuming. A further signal ends
    the program at once, if it comes later than those that launcher and scheduler send together.

    Args:
        signals: names of the signals to heed.
    """

    priority = 'LOWEST'  # after schedules, averages and regular checkpoints

    def __init__(self, signals: tuple[str, ...] = ('SIGTERM',)) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self._told = torch.zeros(1)
        self._first: float | None = None  # when the first signal came
        self._common_batches = 0  # of a validation, that all processes have
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._reduced: torch.Tensor = torch.zeros(1)
        self._reduction: Any = None

    def before_train(self, runner: Runner) -> None:
        """Begin to heed the signals."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend='gloo')
        for each in self.signals:
            self._before[each] = signal.signal(each, self._note)

    def after_train(self, runner: Runner) -> None:
        """Leave the signals to whoever had them."""
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before.clear()

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Begin to ask the other processes."""
        self._ask()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and end if any process was told to."""
        if self._answer():
            self._stop(runner, within_epoch=True)

    def before_val_epoch(self, runner: Runner) -> None:
        """Agree on the batches that every process has: after those nobody can be asked."""
        number = torch.tensor(len(runner.val_dataloader))
        if self._before and self._group is not None:
            dist.all_reduce(number, dist.ReduceOp.MIN, group=self._group)
        self._common_batches = int(number)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Save and end; in a validation of its own there is nothing to save."""
        if not self._before or batch_idx >= self._common_batches:
            return
        self._ask()
        if self._answer():
            self._stop(runner, within_epoch=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told.fill_(1)
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > TOGETHER_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _ask(self) -> None:
        if self._group is not None:
            self._reduced = self._told.clone()
            self._reduction = dist.all_reduce(
                self._reduced, dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def _answer(self) -> bool:
        if self._group is None:
            return bool(self._told)
        self._reduction.wait()
        return bool(self._reduced)

    def _stop(self, runner: Runner, within_epoch: bool) -> None:
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        for saver in savers:
            path = saver.save_stopped(runner, within_epoch)
        if self._group is not None:
            dist.barrier(group=self._group)  # nobody ends before the file is there
        if is_main_process():
            where = f'saved {path}, go on with --resume' if savers else 'nothing was saved'
            print(f'stopped by a signal: {where}', flush=True)
        raise TrainingStopped
