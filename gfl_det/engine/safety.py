"""What ``tools/train.py`` adds to a config so that nothing of a training is lost."""

from __future__ import annotations

import os
from typing import Any

from mmengine.config import Config

from gfl_det.engine.hooks import CheckpointHook, LossGuardHook, StopSignalHook
from gfl_det.engine.training.loop import EpochTrainLoop
from gfl_det.errors import ConfigError
from gfl_det.utils.walk import Node

GUARDS = ('stop', 'skip', 'off')
# Who says how many processes there are, by launcher, before they have met.
PROCESS_COUNTS = {
    'pytorch': 'WORLD_SIZE',
    'slurm': 'SLURM_NTASKS',
    'mpi': 'OMPI_COMM_WORLD_SIZE',
}


def protect(cfg: Config, guard: str = 'stop') -> None:
    """Put our loop, checkpoints, loss guard and stop signal in the place of mmengine's, or beside.

    What a config names otherwise is left as it is, and so is a config for a strategy such as FSDP.

    Args:
        cfg: The config.
        guard: ``stop`` or ``skip`` for a bad step, ``off`` for no guard.
    """
    if cfg.get('runner_type') == 'FlexibleRunner':
        return  # strategies write their own checkpoints, and no process has all of the weights
    loop = cfg.get('train_cfg') or {}
    by_epoch = loop.get('type') is None and loop.get('by_epoch', True)
    if loop.get('type') == 'EpochBasedTrainLoop' or ('max_epochs' in loop and by_epoch):
        loop.pop('by_epoch', None)
        loop['type'] = f'gfl_det.{EpochTrainLoop.__name__}'
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    saver = cfg.default_hooks.setdefault('checkpoint', dict(interval=1))
    if isinstance(saver, dict) and saver.get('type', 'CheckpointHook') == 'CheckpointHook':
        saver['type'] = f'gfl_det.{CheckpointHook.__name__}'
    _add_hook(cfg, dict(type=f'gfl_det.{StopSignalHook.__name__}'))
    if guard != 'off':
        _add_hook(cfg, dict(type=f'gfl_det.{LossGuardHook.__name__}', policy=guard))


def scale_learning_rate(cfg: Config, launcher: str = 'none', wanted: bool = True) -> str:
    """Scale the learning rate by the real batch over the one it was set for, and say so.

    The real batch is the images that one update sees: of all processes, and of all steps whose
    gradients are accumulated (which mmengine leaves out).

    Args:
        cfg: The config; ``auto_scale_lr`` is set.
        launcher: What started the processes.
        wanted: False leaves the rate as it is.

    Returns:
        One line.
    """
    rate, settings = _rate(cfg), cfg.get('auto_scale_lr') or {}
    base = settings.get('base_batch_size')
    cfg.auto_scale_lr = dict(settings, enable=bool(wanted and base))
    if not wanted:
        return f'learning rate {rate:g}, as in the config (--no-scale-lr)'
    if not base:
        return (
            f'learning rate {rate:g}, as in the config, which does not say for what batch size '
            '(auto_scale_lr.base_batch_size)'
        )
    images = _batch_size(cfg)
    processes = int(os.environ.get(PROCESS_COUNTS.get(launcher, ''), 1))
    steps = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batch = images * processes * steps
    if steps > 1:
        cfg.auto_scale_lr['base_batch_size'] = base / steps
    counts = [f'{images} images']
    counts += [f'{processes} processes'] if processes > 1 else []
    counts += [f'{steps} steps'] if steps > 1 else []
    resumed = '; a checkpoint that is resumed from keeps its own' if cfg.get('resume') else ''
    return (
        f'learning rate {rate:g} x {batch}/{base} = {rate * batch / base:g} for batches of '
        f'{" x ".join(counts)}, set for {base} (--no-scale-lr keeps {rate:g}){resumed}'
    )


def _add_hook(cfg: Config, hook: Node) -> None:
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(isinstance(each, dict) and each.get('type') == hook['type'] for each in hooks):
        cfg.custom_hooks = [*hooks, hook]


def _rate(cfg: Config) -> float:
    optimizer: Any = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    rate = optimizer.get('lr')
    if not isinstance(rate, (int, float)):
        raise ConfigError(
            'The config has no optim_wrapper.optimizer.lr: set a learning rate.'
            if rate is None
            else f'optim_wrapper.optimizer.lr is {rate!r}: set a number.'
        )
    return float(rate)


def _batch_size(cfg: Config) -> int:
    loader = cfg.train_dataloader
    size = loader.get('batch_size', (loader.get('batch_sampler') or {}).get('batch_size'))
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f'train_dataloader.batch_size is {size}: give a number of images from 1.')
    return size
