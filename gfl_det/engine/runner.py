"""Runners built from a config, in one process or in one of several."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import torch
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from gfl_det.engine.hooks.progress import ProgressHook, has_terminal
from gfl_det.errors import ConfigError, SetupError

# What mmengine's registries say of a type that they do not know, and of wrong arguments.
REGISTRY_FAULT = re.compile(r'.* is not in the \S+ registry|class `\w+` in \S+: .*argument')


def build_runner(cfg: Config, launcher: str = 'none') -> Runner:
    """Build the runner of a config.

    Args:
        cfg: The config, complete.
        launcher: What started the processes: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        ConfigError: A part has an unknown type, or an argument that its type does not take.
        SetupError: ``pytorch`` without torchrun.
    """
    cfg.launcher = launcher
    if launcher == 'pytorch':
        _join_processes(cfg)
    if has_terminal():
        hook = f'gfl_det.{ProgressHook.__name__}'
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=hook)]
    setup_cache_size_limit_of_dynamo()  # shapes of pictures vary: compile anew less often
    try:
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    except (KeyError, TypeError) as error:
        reason = str(error.args[0]) if error.args else ''
        if not REGISTRY_FAULT.match(reason):
            raise
        raise ConfigError(
            f'{cfg.filename or "The config"} cannot be built: {reason.partition(". ")[0]}.'
        ) from error


def _join_processes(cfg: Config) -> None:
    """Join torchrun's processes where mmengine would not: it takes for granted that each has a GPU.

    Without GPUs gloo connects them, and the wrapped model must not name a device.
    """
    if 'RANK' not in os.environ:
        raise SetupError(
            '--launcher pytorch needs the variables that torchrun sets: start with '
            '`torchrun --nproc_per_node GPUS -m gfl_det train CONFIG --launcher pytorch`.'
        )
    if get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        # mmengine's key, in seconds: how long to wait for a process that does not answer.
        seconds = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
        patience = timedelta(seconds=seconds) if seconds else None
        store, rank, count = next(torch.distributed.rendezvous('env://'))
        if os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']:
            # Processes that torchrun starts again on one machine get the store of those before, and
            # would connect to the addresses of the dead.
            attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
            store = torch.distributed.PrefixStore(f'attempt {attempt}', store)
        torch.distributed.init_process_group(
            'gloo', store=store, rank=rank, world_size=count, timeout=patience
        )
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
