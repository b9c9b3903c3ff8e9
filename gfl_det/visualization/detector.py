"""A trained detector as a function of one image, for pictures and pages."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.structures import InstanceData

from gfl_det import pictures, preflight


class Detector:
    """Loads a config and a checkpoint, and keeps the distributions of the edges.

    Args:
        cfg: of the detector; it is changed.
        checkpoint: a file or an address.
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Attributes:
        classes: names, by label.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or unsafe.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str = 'cpu') -> None:
        from mmdet.apis import init_detector

        preflight.check_checkpoint(checkpoint)
        pictures.draw_softly(cfg)
        self._model = init_detector(cfg, checkpoint, device=device)
        self.classes: tuple[str, ...] = tuple(self._model.dataset_meta['classes'])

    def __call__(self, image: np.ndarray) -> InstanceData:
        """Detect in an image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            On the CPU: ``bboxes``, ``scores``, ``labels`` and, of a GFL head, what
            ``with_distribution`` adds.
        """
        from mmdet.apis import inference_detector

        bgr: Any = np.ascontiguousarray(image[..., ::-1])
        return inference_detector(self._model, bgr).pred_instances.cpu()
