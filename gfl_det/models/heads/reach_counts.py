"""Counts of what a head cannot reach, kept on the device until somebody reads them."""

from __future__ import annotations

import torch

from gfl_det.models.assigners.positives import Positives
from gfl_det.models.heads.loss import TARGET_MARGIN, EdgeTargets
from gfl_det.ops.boxes import boxes_to_distances


class ReachCounts:
    """Running totals of one head.

    Attributes:
        totals: ``(4,)`` int64: edges of positives beyond the last bin, edges of positives, truths
            without a positive, truths.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(4, dtype=torch.int64, device=device)

    def add(self, positives: Positives, edges: EdgeTargets, reg_max: int, num_truths: int) -> None:
        """Count a batch, without a synchronisation.

        Args:
            positives: M slots.
            edges: of these slots.
            reg_max: the last bin; targets end ``TARGET_MARGIN`` before it.
            num_truths: of the batch.
        """
        distances = boxes_to_distances(edges.points, edges.boxes)
        clipped = (distances > reg_max - TARGET_MARGIN) & positives.valid[:, None]
        valid = positives.valid.long()
        served = valid.new_zeros(num_truths).scatter_reduce(0, positives.truth, valid, 'amax')
        bare = (1 - served).sum()
        number = bare.new_full((), num_truths)
        self.totals += torch.stack([clipped.sum(), 4 * valid.sum(), bare, number])
