"""Registered shells of Brier score, label smoothing and MMCE; see :mod:`.score_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from gfl_det.models.losses import calibration_functional, focal_functional
from gfl_det.models.losses.modules import Reduction
from gfl_det.models.losses.score_losses import (
    ScoreLoss,
    Target,
    quality_and_positive,
    softmax_labels,
    spread_weight,
)
from gfl_det.ops.distribution import full_precision
from gfl_det.registry import MODELS


@MODELS.register_module()
class BrierLoss(ScoreLoss):
    """Brier score: the squared distance to the truth, with a softmax summed over classes.

    Args:
        use_sigmoid: scores are sigmoids, one a class, and not a softmax.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
    """

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        return calibration_functional.quality_brier(logits, quality)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return calibration_functional.brier_loss(logits, labels)


@MODELS.register_module()
class LabelSmoothingLoss(ScoreLoss):
    """Cross entropy, or Quality Focal Loss, against smoothed targets.

    Args:
        use_sigmoid: scores are sigmoids, one a class, and not a softmax; only positives' targets
            are smoothed then.
        smoothing: part of the target that is spread evenly, in [0, 1).
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
        beta: with sigmoids, focusing parameter; 0 is cross entropy, 2 Quality Focal Loss.

    Raises:
        ValueError: ``smoothing`` is out of range.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        smoothing: float = 0.05,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        *,
        beta: float = 2.0,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight)
        if not 0 <= smoothing < 1:
            raise ValueError(f'smoothing lies in [0, 1), not {smoothing!r}')
        self.smoothing, self.beta = smoothing, beta

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        smooth = calibration_functional.smooth_quality(quality, positive, self.smoothing)
        return focal_functional.quality_focal(logits, smooth, self.beta)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return calibration_functional.label_smoothing_loss(logits, labels, self.smoothing)


@MODELS.register_module()
class MMCELoss(ScoreLoss):
    """Cross entropy, or Quality Focal Loss, with the kernel calibration error MMCE on top.

    With a softmax the error compares the largest probability with whether it is right; with
    sigmoids, the scores of positives and of as many of the highest-scored negatives with their
    qualities. Its memory grows with the square of the samples, at most 1024 with sigmoids.

    Args:
        use_sigmoid: scores are sigmoids, one a class, and not a softmax.
        mmce_weight: factor of the error beside the mean loss (times N for a sum).
        reduction: 'mean' or 'sum'.
        loss_weight: factor of the result.
        weighted: right and wrong samples weigh the same; for a softmax alone.
        beta: with sigmoids, focusing parameter of the loss below the error.

    Raises:
        ValueError: a reduction of 'none', which the error does not have, or ``weighted`` with
            sigmoids.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        mmce_weight: float = 2.0,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        *,
        weighted: bool = False,
        beta: float = 2.0,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight)
        if weighted and use_sigmoid:
            raise ValueError(
                'a quality is neither right nor wrong: MMCELoss is weighted with a softmax'
            )
        self.mmce_weight, self.weighted, self.beta = mmce_weight, weighted, beta

    def forward(
        self,
        pred: Tensor,
        target: Target,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Loss as in the others, with the error added; samples of weight 0 do not enter it."""
        reduction = reduction_override or self.reduction
        if reduction == 'none':
            raise ValueError('MMCE belongs to no single sample: reduce MMCELoss by mean or sum')
        base = super().forward(pred, target, weight, avg_factor, reduction)
        times = len(pred) if reduction == 'sum' else 1
        error = self.error(full_precision(pred), target, weight)
        return base + self.loss_weight * self.mmce_weight * times * error

    def error(self, logits: Tensor, target: Target, weight: Tensor | None) -> Tensor:
        """The scalar MMCE of logits ``(N, K)``."""
        if self.use_sigmoid:
            quality, positive = quality_and_positive(logits, target)
            counted = torch.ones_like(positive)
            if weight is not None:
                counted = spread_weight(weight, logits).expand_as(quality) > 0
            scores, quality = logits.sigmoid()[counted], quality[counted]
            chosen = calibration_functional.paired_subset(scores, positive[counted])
            return calibration_functional.mmce(scores[chosen], quality[chosen])
        labels = softmax_labels(target)
        if weight is not None:
            logits, labels = logits[weight > 0], labels[weight > 0]
        confidence, guess = logits.softmax(-1).max(-1)
        measure = (
            calibration_functional.weighted_mmce if self.weighted else calibration_functional.mmce
        )
        return measure(confidence, guess == labels)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        return focal_functional.quality_focal(logits, quality, self.beta)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -focal_functional.true_log_probability(logits, labels)
