"""A small detector with a checkpoint as mmengine writes it, and images to run it on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

import gfl_det

CLASSES = tuple('0123456789')


def small_config() -> Config:
    return gfl_det.get_config('gfl_r18_fpn_digits')


def write_checkpoint(folder: Path, cfg: Config | None = None, text: str | None = None) -> Path:
    """Random weights that find boxes, the config's text and the classes' names beside them.

    Args:
        folder: of the file.
        cfg: to build from; None: the demo's.
        text: in the place of the config's own.
    """
    register_all_modules()
    cfg = small_config() if cfg is None else cfg
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():  # an untrained head finds nothing above the threshold
        model.bbox_head.gfl_cls.bias.add_(2.5)
        model.bbox_head.gfl_cls.weight.mul_(400)
        model.bbox_head.gfl_reg.weight.mul_(100)  # edges of different certainty
    meta = dict(
        cfg=cfg.pretty_text if text is None else text, dataset_meta=dict(classes=CLASSES), epoch=1
    )
    path = folder / 'epoch_1.pth'
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return path


def write_images(folder: Path, number: int, size: tuple[int, int] = (96, 128)) -> list[Path]:
    """Noise in colour with bright squares; ``size`` is height and width."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(number):
        image = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
        top, left = (int(rng.integers(0, side - side // 3)) for side in size)
        image[top : top + size[0] // 3, left : left + size[1] // 3] = rng.integers(120, 255, 3)
        paths.append(folder / f'{index + 1}.png')
        cv2.imwrite(str(paths[-1]), image)
    return paths
