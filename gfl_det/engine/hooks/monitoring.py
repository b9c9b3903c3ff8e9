"""Hooks that watch a training.

One logs the shares of clipped edges and of unassigned gts, one draws a fixed sample of validation
images after each epoch, for every back end of the visualizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.dist import all_reduce, get_world_size
from mmengine.fileio import get
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from gfl_det.errors import ConfigError
from gfl_det.models.assigners.batch import BatchAssignment
from gfl_det.models.heads.gfl_head import GFLHead
from gfl_det.models.heads.loss import TARGET_MARGIN, gts_in_strides
from gfl_det.ops.boxes import boxes_to_distances
from gfl_det.registry import HOOKS


class AssignmentCounts:
    """Running totals of a head's training targets, kept on its device.

    Attributes:
        reg_max: Last bin of the head; targets end ``TARGET_MARGIN`` before it.
        totals: ``(4,)`` int64: edges of positives beyond the last bin, edges of positives,
            unassigned gts, gts.
    """

    def __init__(self, reg_max: int, device: torch.device) -> None:
        self.reg_max = reg_max
        self.totals = torch.zeros(4, dtype=torch.int64, device=device)

    def add(self, assigned: BatchAssignment) -> None:
        """Count a batch without synchronisation."""
        positives, number = assigned.positives, len(assigned.boxes)
        distances = boxes_to_distances(*gts_in_strides(assigned))
        clipped = (distances > self.reg_max - TARGET_MARGIN) & positives.valid[:, None]
        valid = positives.valid.long()
        is_assigned = valid.new_zeros(number).scatter_reduce(0, positives.gt, valid, 'amax')
        unassigned = (1 - is_assigned).sum()
        counts = [clipped.sum(), 4 * valid.sum(), unassigned, unassigned.new_full((), number)]
        self.totals += torch.stack(counts)


@HOOKS.register_module()
class AssignmentLogHook(Hook):
    """Logs two shares over all images of all processes since the last log entry.

    ``clipped_edges``: share of the positives' edges beyond the last bin, whose boxes come out too
    small; raise ``reg_max`` or add a coarser level. ``truths_without_positive``: share of
    unassigned gts, which contribute nothing to training; see ``with_best_prior`` of the assigner.
    Both lie in [0, 1]; ``gfl-det suggest-reg-max`` gives advice before training.

    The counts stay on the device and are read only when mmengine's LoggerHook writes. In the loss
    dict they would be read at every step, and logged for the last step only.
    """

    priority = 'NORMAL'  # before LoggerHook, which is BELOW_NORMAL

    def __init__(self) -> None:
        self.counts: list[AssignmentCounts] = []

    def before_train(self, runner: Runner) -> None:
        """Register counters on all GFL heads of the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.counts = []
        for head in model.modules():
            if isinstance(head, GFLHead):
                self.counts.append(AssignmentCounts(head.reg_max, next(head.parameters()).device))
                head.assignment_observer = self.counts[-1].add

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Add the shares to the log entry if one is written now."""
        if not self.counts or not self._is_logged(runner, batch_idx):
            return
        totals = torch.stack([each.totals for each in self.counts]).sum(0)
        all_reduce(totals)
        clipped, edges, unassigned, gts = totals.tolist()
        for each in self.counts:
            each.totals.zero_()
        runner.message_hub.update_scalar('train/clipped_edges', clipped / max(1, edges))
        runner.message_hub.update_scalar('train/truths_without_positive', unassigned / max(1, gts))

    def _is_logged(self, runner: Runner, batch_idx: int) -> bool:
        """Whether LoggerHook writes an entry after this step."""
        logger = next((each for each in runner.hooks if isinstance(each, LoggerHook)), None)
        if logger is None:
            return False
        if self.every_n_inner_iters(batch_idx, logger.interval):
            return True
        loader = runner.train_dataloader
        keeps_last = not logger.ignore_last or len(loader) <= logger.interval
        return self.end_of_epoch(loader, batch_idx) and keeps_last


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
