"""Small versions of MMDetection's configs, to swap heads in."""

from __future__ import annotations

from pathlib import Path

import mmdet
from mmengine.config import Config

ZOO = Path(mmdet.__file__).parent / '.mim' / 'configs'


def zoo_config(name: str, small: bool = True) -> Config:
    """A config of the zoo; ``small``: on ResNet-18 where it stands on a larger ResNet."""
    cfg = Config.fromfile(ZOO / f'{name}.py')
    if small and cfg.model.backbone.type == 'ResNet':
        cfg.model.backbone.depth = 18
        neck = cfg.model.neck
        first = neck[0] if isinstance(neck, list) else neck
        first.in_channels = _narrower(first.in_channels)
    return cfg


def _narrower(channels):
    return [_narrower(each) for each in channels] if isinstance(channels, list) else channels // 4
