"""Registered loss modules with MMDetection's constructor arguments and calls."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from gfl_det.models.losses.functional import (
    distillation_loss,
    distribution_focal_loss,
    quality_focal_loss,
    quality_focal_loss_from_scores,
)
from gfl_det.registry import MODELS

Reduction = Literal['none', 'mean', 'sum']
REDUCTIONS = ('none', 'mean', 'sum')
# float32's epsilon, as in mmdet: division by an avg_factor of 0 stays finite.
EPS = 1.1920929e-07


def reduce_loss(
    loss: Tensor, weight: Tensor | None, reduction: Reduction, avg_factor: float | Tensor | None
) -> Tensor:
    """Weight and reduce an element-wise loss.

    Args:
        loss: ``(N,)``.
        weight: ``(N,)`` or None.
        reduction: 'none', 'sum' or 'mean'; 'mean' divides the sum by ``avg_factor``, or by N
            without one.
        avg_factor: Divisor of the sum for 'mean'; ignored for 'none'.

    Returns:
        ``(N,)`` for 'none', otherwise a scalar.

    Raises:
        ValueError: If the reduction is unknown, or 'sum' is given an ``avg_factor``.

    Example:
        >>> import torch
        >>> reduce_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]), 'mean', avg_factor=4)
        tensor(0.2500)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {REDUCTIONS}, not {reduction!r}')
    if weight is not None:
        loss = loss * weight
    if reduction == 'none':
        return loss
    if avg_factor is None:
        return loss.mean() if reduction == 'mean' else loss.sum()
    if reduction == 'sum':
        raise ValueError('avg_factor works only with reduction="mean", not "sum": remove it')
    return loss.sum() / (avg_factor + EPS)


def dense_quality(pred: Tensor, target: tuple[Tensor, Tensor] | Tensor) -> Tensor:
    """Dense targets of all classes from labels and qualities.

    Args:
        pred: ``(N, C)`` scores.
        target: Labels ``(N,)`` (outside 0..C-1: background) with qualities ``(N,)``, or dense
            qualities ``(N, C)``.

    Returns:
        ``(N, C)``: the qualities at their labels, 0 elsewhere.

    Raises:
        ValueError: If the target is neither a pair nor a tensor of the scores' shape.

    Example:
        >>> import torch
        >>> labels, ious = torch.tensor([1, 2]), torch.tensor([0.8, 0.0])  # class 1, background
        >>> dense_quality(torch.zeros(2, 2), (labels, ious))
        tensor([[0.0000, 0.8000],
                [0.0000, 0.0000]])
    """
    if isinstance(target, Tensor):
        if target.shape != pred.shape:
            raise ValueError(
                f'a tensor target must have the shape of the scores {tuple(pred.shape)}, '
                f'not {tuple(target.shape)}'
            )
        return target.to(pred.dtype)
    if len(target) != 2:
        raise ValueError('the target of QualityFocalLoss must be a pair of labels and qualities')
    label, quality = target
    is_object = (label >= 0) & (label < pred.shape[1])
    column = label.where(is_object, label.new_zeros(()))[:, None].long()
    value = quality.where(is_object, quality.new_zeros(()))[:, None].to(pred.dtype)
    return pred.new_zeros(pred.shape).scatter(1, column, value)


@MODELS.register_module()
class QualityFocalLoss(nn.Module):
    """Quality Focal Loss (GFL paper, eq. 2), a drop-in for mmdet's.

    Args:
        use_sigmoid: Must be True; accepted for compatibility with mmdet's configs.
        beta: Focusing parameter, at least 0.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
        activated: Inputs are probabilities instead of logits.

    Raises:
        ValueError: If ``use_sigmoid`` is False.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError(
                'QualityFocalLoss has one score per class: leave use_sigmoid=True, and set '
                'activated=True if the input is probabilities'
            )
        self.use_sigmoid = use_sigmoid
        self.beta = beta
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor] | Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Loss of scores ``(N, C)``, summed over classes before the reduction.

        Args:
            pred: ``(N, C)`` logits, or probabilities if ``activated``.
            target: Labels ``(N,)`` (outside 0..C-1: background) with qualities ``(N,)``, or dense
                qualities ``(N, C)``.
            weight: ``(N,)``.
            avg_factor: Divisor of the sum.
            reduction_override: Replaces ``reduction``.

        Returns:
            Scalar, or ``(N,)`` without reduction.

        Raises:
            ValueError: If the target is neither a pair nor a tensor of the scores' shape.
        """
        quality = dense_quality(pred, target)
        equation = quality_focal_loss_from_scores if self.activated else quality_focal_loss
        loss = equation(pred, quality, self.beta).sum(1)
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)


@MODELS.register_module()
class DistributionFocalLoss(nn.Module):
    """Distribution Focal Loss (GFL paper, eq. 6), a drop-in for mmdet's.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
    """

    def __init__(self, reduction: Reduction = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Loss of edge logits ``(N, num_bins)`` against distances ``(N,)`` in strides.

        Args:
            pred: ``(N, num_bins)`` logits.
            target: ``(N,)``, clamped to [0, num_bins - 1].
            weight: ``(N,)``.
            avg_factor: Divisor of the sum.
            reduction_override: Replaces ``reduction``.

        Returns:
            Scalar, or ``(N,)`` without reduction.
        """
        loss = distribution_focal_loss(pred, target)
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)


@MODELS.register_module()
class DistillationLoss(nn.Module):
    """Divergence of a student's softened distribution from its teacher's.

    It takes the arguments of mmdet's ``KnowledgeDistillationKLDivLoss``, which averages over the n
    bins or classes and is thus n times smaller.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
        T: Temperature, above 0.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(
        self, reduction: Reduction = 'mean', loss_weight: float = 1.0, T: float = 10
    ) -> None:
        super().__init__()
        if T <= 0:
            raise ValueError(f'T divides the logits: choose a temperature above 0, not {T}')
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight
        self.T = T

    def forward(
        self,
        pred: Tensor,
        soft_label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Loss of student logits ``(N, n)`` against the teacher's.

        Args:
            pred: ``(N, n)`` logits.
            soft_label: ``(N, n)`` teacher logits.
            weight: ``(N,)``.
            avg_factor: Divisor of the sum.
            reduction_override: Replaces ``reduction``.

        Returns:
            Scalar, or ``(N,)`` without reduction.
        """
        loss = distillation_loss(pred, soft_label, self.T)
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)
