"""A step of a pipeline that ends or stalls the process at marked pictures, as a bug would."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from tests.helpers.inferring import small_config

DEADLY, STALLING = (1, 2, 3), (4, 5, 6)  # BGR of the first pixel


@TRANSFORMS.register_module()
class FatalTransform(BaseTransform):
    """Kills its process at one mark, sleeps at another; passes everything else."""

    def transform(self, results: dict) -> dict:
        first = tuple(results['img'][0, 0].tolist())
        if first == DEADLY:
            os.kill(os.getpid(), signal.SIGSEGV)
        if first == STALLING:
            time.sleep(3600)
        return results


def write_fatal_config(path: Path) -> Path:
    """The small detector's config with the step in its test pipeline."""
    cfg = small_config()
    cfg.custom_imports = dict(imports=['gfl_det', 'tests.helpers.fatal'])
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='FatalTransform'))
    path.write_text(cfg.pretty_text)
    return path


def mark(image: Path, colour: tuple[int, int, int]) -> None:
    """Mark a picture."""
    pixels = cv2.imread(str(image))
    pixels[0, 0] = colour
    cv2.imwrite(str(image), np.ascontiguousarray(pixels))
