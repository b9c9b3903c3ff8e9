"""Logging of the shares of clipped edges and unassigned gts during training."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

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
