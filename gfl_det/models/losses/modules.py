"""Registered shells of the losses: constructor arguments and calls as in MMDetection."""

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
# Keeps a division by an avg_factor of 0 finite; float32's epsilon, as in mmdet.
EPS = 1.1920929e-07


def reduce_loss(
    loss: Tensor, weight: Tensor | None, reduction: Reduction, avg_factor: float | Tensor | None
) -> Tensor:
    """Weigh and reduce an element-wise loss.

    Args:
        loss: ``(N,)``.
        weight: ``(N,)`` or None.
        reduction: 'mean' divides the sum by ``avg_factor`` or, without one, by N.
        avg_factor: divisor of the sum, for 'mean'; without effect for 'none'.

    Returns:
        ``(N,)`` for 'none', else a scalar.

    Raises:
        ValueError: the reduction is unknown, or 'sum' is given an ``avg_factor``.

    Example:
        >>> import torch
        >>> reduce_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]), 'mean', avg_factor=4)
        tensor(0.2500)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction is one of {REDUCTIONS}, not {reduction!r}')
    if weight is not None:
        loss = loss * weight
    if reduction == 'none':
        return loss
    if avg_factor is None:
        return loss.mean() if reduction == 'mean' else loss.sum()
    if reduction == 'sum':
        raise ValueError('avg_factor goes with reduction "mean", not with "sum"')
    return loss.sum() / (avg_factor + EPS)


def dense_quality(pred: Tensor, target: tuple[Tensor, Tensor] | Tensor) -> Tensor:
    """Targets of all classes from labels and qualities.

    Args:
        pred: ``(N, C)`` scores.
        target: labels ``(N,)`` (outside 0..C-1: background) with qualities ``(N,)``, or the
            qualities themselves ``(N, C)``.

    Returns:
        ``(N, C)``, 0 but for the qualities at their labels.

    Raises:
        ValueError: the target is neither a pair nor of the scores' shape.

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
                f'a tensor target has the shape of the scores {tuple(pred.shape)}, '
                f'not {tuple(target.shape)}'
            )
        return target.to(pred.dtype)
    if len(target) != 2:
        raise ValueError('a target of QualityFocalLoss is a pair: labels and qualities')
    label, quality = target
    is_object = (label >= 0) & (label < pred.shape[1])
    column = label.where(is_object, label.new_zeros(()))[:, None].long()
    value = quality.where(is_object, quality.new_zeros(()))[:, None].to(pred.dtype)
    return pred.new_zeros(pred.shape).scatter(1, column, value)


@MODELS.register_module()
class QualityFocalLoss(nn.Module):
    """Quality Focal Loss (GFL paper, eq. 2), a drop-in for mmdet's.

    Args:
        use_sigmoid: must be True; kept so that mmdet's configs fit.
        beta: focusing parameter, at least 0.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
        activated: inputs are probabilities and not logits.

    Raises:
        ValueError: ``use_sigmoid`` is False.
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
            target: labels ``(N,)`` (outside 0..C-1: background) with qualities ``(N,)``, or the
                qualities themselves ``(N, C)``.
            weight: ``(N,)``.
            avg_factor: divisor of the sum.
            reduction_override: takes the place of ``reduction``.

        Returns:
            Scalar, or ``(N,)`` without reduction.

        Raises:
            ValueError: the target is neither a pair nor of the scores' shape.
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
        loss_weight: factor of the result.
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
            target: ``(N,)`` in [0, num_bins - 1]; clamped to it.
            weight: ``(N,)``.
            avg_factor: divisor of the sum.
            reduction_override: takes the place of ``reduction``.

        Returns:
            Scalar, or ``(N,)`` without reduction.
        """
        loss = distribution_focal_loss(pred, target)
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)


@MODELS.register_module()
class DistillationLoss(nn.Module):
    """Divergence of a student's softened distribution from its teacher's.

    It takes what mmdet's ``KnowledgeDistillationKLDivLoss`` takes. That one averages over the n
    bins or classes, so it is n times smaller.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.
        T: temperature, above 0.

    Raises:
        ValueError: the temperature is not positive.
    """

    def __init__(
        self, reduction: Reduction = 'mean', loss_weight: float = 1.0, T: float = 10
    ) -> None:
        super().__init__()
        if T <= 0:
            raise ValueError(f'T divides logits: choose a temperature above 0, not {T}')
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
        """Loss of logits ``(N, n)`` against the teacher's.

        Args:
            pred: ``(N, n)`` logits.
            soft_label: ``(N, n)`` logits of the teacher.
            weight: ``(N,)``.
            avg_factor: divisor of the sum.
            reduction_override: takes the place of ``reduction``.

        Returns:
            Scalar, or ``(N,)`` without reduction.
        """
        loss = distillation_loss(pred, soft_label, self.T)
        reduction = reduction_override or self.reduction
        return self.loss_weight * reduce_loss(loss, weight, reduction, avg_factor)
