"""Pictures of a fixed sample of validation images after each epoch, for every back end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.dist import get_world_size
from mmengine.fileio import get
from mmengine.runner import Runner

from gfl_det.errors import ConfigError
from gfl_det.registry import HOOKS


@HOOKS.register_module()
class SamplePicturesHook(DetVisualizationHook):
    """Draws a fixed sample of validation images, each under its own name with the epoch as step.

    mmdet's hook draws every 50th batch under one name; here a slider in TensorBoard or W&B shows
    how the boxes of one image change. The images are evenly spaced over the validation set (over
    the first process's share of it). No display is needed. Testing works as in mmdet's hook, if a
    folder or window is requested.

    Args:
        num_images: Number of images.
        draw: False disables drawing.
        **kwargs: Arguments of mmdet's ``DetVisualizationHook``: score_thr, backend_args and others.

    Raises:
        ConfigError: If ``num_images`` is less than 1.
    """

    def __init__(self, num_images: int = 8, draw: bool = True, **kwargs: Any) -> None:
        super().__init__(draw=draw, **kwargs)
        if num_images < 1:
            raise ConfigError(f'num_images must be at least 1, not {num_images}')
        self.num_images = num_images
        self._sample: frozenset[Any] | None = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the sample once, from the dataset itself, whatever the loading order."""
        if self.draw and self._sample is None:
            dataset = runner.val_dataloader.dataset
            own = range(0, len(dataset), get_world_size())
            number = min(self.num_images, len(own))
            places = [own[place * len(own) // number] for place in range(number)]
            self._sample = frozenset(dataset.get_data_info(place)['img_id'] for place in places)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the images of this batch that are in the sample."""
        for sample in outputs:
            if self._sample is not None and sample.img_id in self._sample:
                content = get(sample.img_path, backend_args=self.backend_args)
                self._visualizer.add_datasample(
                    f'val_{Path(sample.img_path).stem}',
                    mmcv.imfrombytes(content, channel_order='rgb'),
                    data_sample=sample,
                    pred_score_thr=self.score_thr,
                    step=runner.epoch or runner.iter,
                )

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw every tested image if a folder or window is requested."""
        if self.test_out_dir is not None or self.show:
            super().after_test_iter(runner, batch_idx, data_batch, outputs)
