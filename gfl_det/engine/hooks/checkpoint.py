"""Checkpoints for exact resumption of a training, also saved on a signal."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from gfl_det.engine.training import random_state
from gfl_det.engine.training.checkpoints import LAST_CHECKPOINT, WholeFileBackend
from gfl_det.engine.training.loop import VALIDATED, EpochTrainLoop
from gfl_det.errors import CheckpointError
from gfl_det.registry import HOOKS
from gfl_det.utils.files import clear_parts, write_whole

STATE = 'training_state'  # key in the meta of a checkpoint
STOPPED = 'stopped_iter_{}.pth'
SHOWN_KEYS = 3
# torchrun forwards signals that the scheduler has also sent to every process.
TOGETHER_SECONDS = 5.0


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """Drop-in replacement for mmengine's ``CheckpointHook``: same arguments and file names.

    - A checkpoint and ``last_checkpoint`` are written atomically with a checksum
      (:mod:`gfl_det.utils.files`), and an outdated checkpoint is removed only after its successor
      is on disk.
    - A checkpoint also holds the states of all random generators of all processes and the position
      in the epoch, so that with :class:`gfl_det.engine.training.EpochTrainLoop` a resumed training
      gives the same weights as an uninterrupted one.
    - The best checkpoint holds the complete state too, so a training can resume from it.
    - Resuming from another model's checkpoint is an error; mmengine loads whatever fits.

    With mmengine's ``EMAHook``, ``state_dict`` holds the averaged weights, which tests use, and
    ``ema_state_dict`` the trained ones; ``gfl-det weights extract`` extracts either.

    Args:
        *args: Arguments of mmengine's hook.
        **kwargs: Arguments of mmengine's hook. ``backend_args``, if given, decide how files are
            written.
    """

    backend_args: dict[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches_done = 0
        self._state: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Set up writing, clean up after a killed run, and restore the position of the training."""
        if self.backend_args is None and '://' not in str(self.out_dir or runner.work_dir):
            self.backend_args = dict(backend=WholeFileBackend.NAME)
        super().before_train(runner)
        if is_main_process() and self.file_backend.isdir(self.out_dir):
            clear_parts(self.out_dir)
        state, self._state = self._state, None
        if state is not None:
            _resume_order(runner, state)
            if len(state['random']) == get_world_size():  # other process counts draw new numbers
                random_state.restore(state['random'][get_rank()])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the training state from the checkpoint to resume from.

        Raises:
            CheckpointError: If the checkpoint belongs to another model.
        """
        if not runner._resume:
            return
        _check_model(runner, checkpoint['state_dict'])
        self._state = checkpoint.get('meta', {}).get(STATE)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save after an iteration, if configured."""
        self._batches_done = batch_idx + 1
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save after an epoch, if configured."""
        self._batches_done = 0
        super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint."""
        runner.message_hub.update_info(VALIDATED, runner.epoch)
        super().after_val_epoch(runner, metrics)

    def save_stopped(self, runner: Runner, within_epoch: bool) -> str:
        """Save a training that is about to stop between steps.

        Args:
            runner: Runner of the training.
            within_epoch: False while a validation runs.

        Returns:
            The path of the checkpoint.
        """
        if within_epoch:
            meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        else:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # it swaps weights for validation
                    hook.after_val_epoch(runner)
            meta = dict(epoch=runner.epoch, iter=runner.iter)
        name = STOPPED.format(meta['iter'])
        self._write(runner, name, meta)
        return self._note_last(runner, name)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = self._forget_outdated(runner, step)
        name = self.filename_tmpl.format(step)
        runner.message_hub.update_info('last_ckpt', self._path(name))
        self._write(runner, name, meta)
        self.last_ckpt = self._note_last(runner, name)
        if is_main_process():
            for each in outdated:
                self._remove(self._path(self.filename_tmpl.format(each)))
            for each in self.file_backend.list_dir_or_file(self.out_dir, list_dir=False):
                if each.startswith(STOPPED.partition('{')[0]) and each.endswith('.pth'):
                    self._remove(self._path(each))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        now = runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        improved = False
        for key, rule in zip(self.key_indicators, self.rules):
            suffix = '' if len(self.key_indicators) == 1 else f'_{key}'
            best = runner.message_hub.get_info(f'best_score{suffix}', self.init_value_map[rule])
            score = metrics[key]
            if score is None or math.isnan(score) or not self.is_better_than[key](score, best):
                continue
            improved = True
            name = f'best_{key}_{self.filename_tmpl.format(now)}'.replace('/', '_')
            former = runner.message_hub.get_info(f'best_ckpt{suffix}')
            runner.message_hub.update_info(f'best_score{suffix}', score)
            runner.message_hub.update_info(f'best_ckpt{suffix}', self._path(name))
            self._keep_best_path(key, self._path(name))
            self._write(runner, name, dict(meta))
            if former and former != self._path(name) and is_main_process():
                self._remove(former)
            runner.logger.info(f'The best checkpoint so far, {score:0.4f} {key}, is {name}.')
        # The checkpoint of this epoch was written before its score was known.
        if improved and self.last_ckpt is not None:
            self._save_checkpoint_with_step(runner, now, meta)

    def _keep_best_path(self, key: str, path: str) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path

    def _forget_outdated(self, runner: Runner, step: int) -> Sequence[int]:
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        outdated = [self.keep_ckpt_ids.popleft()] if full else []
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _write(self, runner: Runner, name: str, meta: dict[str, Any]) -> None:
        # All processes take part: the runner itself saves in the first one only.
        meta[STATE] = dict(
            batches_done=self._batches_done,
            random=all_gather_object(_random_state(runner)),
            sampler_seed=getattr(_sampler(runner), 'seed', None),
        )
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )

    def _note_last(self, runner: Runner, name: str) -> str:
        path = self._path(name)
        if is_main_process():
            write_whole(f'{runner.work_dir}/{LAST_CHECKPOINT}', path.encode())
        return path

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # sharded checkpoints
            self.file_backend.rmtree(path)


def _sampler(runner: Runner) -> Any:
    return getattr(runner.train_dataloader.batch_sampler, 'sampler', None)


def _random_state(runner: Runner) -> random_state.State:
    aside = getattr(runner.train_loop, 'random_aside', None)
    return random_state.capture() if aside is None else aside


def _resume_order(runner: Runner, state: dict[str, Any]) -> None:
    sampler = _sampler(runner)
    if state['sampler_seed'] is not None and hasattr(sampler, 'seed'):
        sampler.seed = state['sampler_seed']
    loop, done = runner.train_loop, state['batches_done']
    if isinstance(loop, EpochTrainLoop) and loop.can_resume_within:
        if done and len(state['random']) != get_world_size():
            runner.logger.warning(
                'The checkpoint was written within an epoch by another number of processes: the '
                'epoch starts over.'
            )
            done = 0
        loop.resume_within(done)
    elif done:
        runner.logger.warning('The checkpoint was written within an epoch: the epoch starts over.')


def _check_model(runner: Runner, found: dict[str, Any]) -> None:
    model: nn.Module = runner.model.module if is_model_wrapper(runner.model) else runner.model
    wanted = model.state_dict()
    found = {key.removeprefix('module.'): value for key, value in found.items()}
    wrong = sorted(
        key
        for key in wanted.keys() | found.keys()
        if key not in wanted or key not in found or wanted[key].shape != found[key].shape
    )
    if wrong:
        shown = ', '.join(wrong[:SHOWN_KEYS])
        raise CheckpointError(
            f'The checkpoint to resume from is of another model: {len(wrong)} of {len(wanted)} '
            f'entries differ ({shown}, ...): give the config it was trained with, or start from '
            'its weights with load_from.'
        )


class TrainingStopped(SystemExit):
    """Signals that a training has saved its state; ends any program with status 0."""

    def __init__(self) -> None:
        super().__init__(0)


@HOOKS.register_module()
class StopSignalHook(Hook):
    """On SIGTERM: finishes the step, saves a checkpoint, and exits with status 0.

    Cluster schedulers send SIGTERM some seconds (the grace time) before they kill. All processes
    end after the same step: they share whether a signal arrived by a gloo reduction that overlaps
    with the step. During validation the trained state is saved at the next batch, and validation is
    repeated on resuming. A later signal ends the program at once, unless launcher and scheduler
    sent both together.

    Args:
        signals: Names of the signals to handle.
    """

    priority = 'LOWEST'  # after schedules, averages and regular checkpoints

    def __init__(self, signals: tuple[str, ...] = ('SIGTERM',)) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self._told = torch.zeros(1)
        self._first: float | None = None  # arrival of the first signal
        self._common_batches = 0  # of a validation, common to all processes
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._reduced: torch.Tensor = torch.zeros(1)
        self._reduction: Any = None

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend='gloo')
        for each in self.signals:
            self._before[each] = signal.signal(each, self._note)

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handlers."""
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before.clear()

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Start a reduction over the processes."""
        self._ask()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and exit if any process received a signal."""
        if self._answer():
            self._stop(runner, within_epoch=True)

    def before_val_epoch(self, runner: Runner) -> None:
        """Agree on the number of batches that all processes have; later ones cannot be reduced."""
        number = torch.tensor(len(runner.val_dataloader))
        if self._before and self._group is not None:
            dist.all_reduce(number, dist.ReduceOp.MIN, group=self._group)
        self._common_batches = int(number)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Save and exit; a stand-alone validation has nothing to save."""
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
            dist.barrier(group=self._group)  # no process exits before the file is written
        if is_main_process():
            where = f'saved {path}, go on with --resume' if savers else 'nothing was saved'
            print(f'stopped by a signal: {where}', flush=True)
        raise TrainingStopped


def _is_noted() -> bool:
    """Whether SIGTERM is handled by a hook of this process."""
    return getattr(signal.getsignal(signal.SIGTERM), '__func__', None) is StopSignalHook._note


_masks = threading.local()


def _hold_term() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_term() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _forget_term() -> None:
    if _is_noted():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release_term()


# A fork has no step to finish. A pool, such as those of some metrics, ends its processes by SIGTERM
# and waits for them without limit: it ends them, from their first moment on.
if hasattr(os, 'register_at_fork'):  # Windows has no forks
    os.register_at_fork(
        before=_hold_term, after_in_parent=_release_term, after_in_child=_forget_term
    )
