"""What the tools' options about pictures do to a config."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, ConfigDict

from gfl_det.errors import ConfigError, SetupError

# Heads whose results hold distributions on request.
HEADS = ('gfl_det.GFLHead', 'gfl_det.GFLv2Head', 'gfl_det.LDHead')
BACKENDS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbVisBackend'}


def draw_softly(cfg: Config) -> None:
    """Draw with ``GFLVisualizer`` in the place of mmdet's, and keep the edges' distributions.

    A visualiser of the user's own stays.
    """
    visualizer = cfg.get('visualizer')
    if visualizer is None:
        cfg.visualizer = dict(type='gfl_det.GFLVisualizer', name='visualizer')
    elif str(visualizer.type).rpartition('.')[2] == 'DetLocalVisualizer':
        visualizer.type = 'gfl_det.GFLVisualizer'
    if cfg.model.get('bbox_head', {}).get('type') in HEADS:
        cfg.model.test_cfg = ConfigDict({**(cfg.model.get('test_cfg') or {})})
        cfg.model.test_cfg.with_distribution = True


def draw_sample(cfg: Config, number: int) -> None:
    """Draw the same validation images after each validation.

    Raises:
        ConfigError: The config validates nothing, or the number is not positive.
    """
    if number < 1:
        raise ConfigError(f'--pictures {number}: give the number of images to draw, at least 1.')
    if cfg.get('val_dataloader') is None:
        raise ConfigError('--pictures draws validation images: the config has no val_dataloader.')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    given: dict[str, Any] = hooks.get('visualization') or {}
    kept = {key: given[key] for key in ('score_thr', 'backend_args') if key in given}
    hooks['visualization'] = ConfigDict(
        type='gfl_det.SamplePicturesHook', num_images=number, **kept
    )
    draw_softly(cfg)


def log_to(cfg: Config, names: Sequence[str]) -> None:
    """Send losses, metrics and pictures to TensorBoard or W&B as well.

    Raises:
        SetupError: The package is not installed.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SetupError(
            f'--log-to {missing[0]} needs the package {missing[0]}: '
            f'pip install "gfl_det[{missing[0]}]".'
        )
    visualizer = cfg.setdefault(
        'visualizer', ConfigDict(type='gfl_det.GFLVisualizer', name='visualizer')
    )
    # The config's variable vis_backends is often this very list.
    backends = [dict(backend) for backend in visualizer.get('vis_backends') or []]
    have = {backend['type'] for backend in backends}
    wanted = [BACKENDS[name] for name in dict.fromkeys(names)]
    backends += [dict(type=kind) for kind in wanted if kind not in have]
    visualizer.vis_backends = backends
