"""What losses that bear on calibration share, for detectors and classifiers.

With ``use_sigmoid=False`` they take logits ``(N, K)`` and labels ``(N,)`` as a classifier has them.
With ``use_sigmoid=True`` they take logits ``(N, C)`` and what a dense head of MMDetection gives:
labels ``(N,)`` in which C is background, labels with qualities as Quality Focal Loss has them, or
targets ``(N, C)`` in [0, 1]. Elements are reduced as MMDetection does: a sum over anchors and
classes by ``avg_factor``, or the mean of all elements.
"""

from __future__ import annotations

from typing import Union

import torch
from torch import Tensor, nn

from gfl_det.models.losses.modules import REDUCTIONS, Reduction, dense_quality, reduce_loss
from gfl_det.ops.distribution import full_precision

Target = Union[Tensor, tuple[Tensor, Tensor]]


class ScoreLoss(nn.Module):
    """What the losses below share: targets, weights and the reduction.

    Args:
        use_sigmoid: scores are sigmoids, one a class, and not a softmax.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
    """

    def __init__(
        self, use_sigmoid: bool = True, reduction: Reduction = 'mean', loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction is one of {REDUCTIONS}, not {reduction!r}')
        self.use_sigmoid = use_sigmoid
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Target,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Loss of logits against their target (see the module for both forms).

        Args:
            pred: ``(N, K)`` logits.
            target: labels, labels with qualities, or targets of all classes.
            weight: ``(N,)``, or with sigmoids ``(N, C)``, flat or not.
            avg_factor: divisor of the sum, for 'mean'.
            reduction_override: takes the place of ``reduction``.

        Returns:
            Scalar; without reduction ``(N, C)`` with sigmoids, ``(N,)`` with a softmax.

        Raises:
            ValueError: the target has another form.
        """
        pred = full_precision(pred)
        reduction = reduction_override or self.reduction
        if self.use_sigmoid:
            quality, positive = quality_and_positive(pred, target)
            loss = self.sigmoid_loss(pred, quality, positive)
            if weight is not None:
                weight = spread_weight(weight, pred)
        else:
            loss = self.softmax_loss(pred, softmax_labels(target))
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        """Loss of each element, all ``(N, C)``; ``positive`` marks the assigned classes."""
        raise NotImplementedError

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss ``(N,)`` of logits ``(N, K)`` against labels ``(N,)``."""
        raise NotImplementedError


def quality_and_positive(logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Targets ``(N, C)`` and which of them are of an assigned class."""
    if isinstance(target, Tensor) and target.dim() == 1:
        target = (target, logits.new_ones(len(target)))
    quality = dense_quality(logits, target)
    if isinstance(target, Tensor):
        return quality, quality > 0
    labels = target[0]
    assigned = dense_quality(logits, (labels, logits.new_ones(len(labels))))
    return quality, assigned > 0


def spread_weight(weight: Tensor, logits: Tensor) -> Tensor:
    """Weights of anchors ``(N,)``, or of elements in any shape, as ``(N, 1)`` or ``(N, C)``."""
    return weight.reshape(logits.shape if weight.numel() == logits.numel() else (-1, 1))


def softmax_labels(target: Target) -> Tensor:
    """The target as labels ``(N,)``.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(target, Tensor) or target.dim() != 1:
        raise ValueError(
            'with a softmax the target is labels (N,): set use_sigmoid=True for others'
        )
    return target


def balanced(loss: Tensor, positive: Tensor, alpha: float | None) -> Tensor:
    """The loss with positives weighing alpha and negatives 1 - alpha; None: as it is."""
    if alpha is None:
        return loss
    return loss * torch.where(positive, alpha, 1 - alpha)


def checked_alpha(alpha: float | None) -> float | None:
    """Return a weight of positives.

    Raises:
        ValueError: it is out of range.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f'alpha lies in [0, 1] or is None, not {alpha!r}')
    return alpha
