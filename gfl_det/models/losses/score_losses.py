"""Registered losses related to calibration, for detectors and classifiers.

:class:`ScoreLoss` and the functions below it are shared by the losses: focal, inverse focal, Brier,
label smoothing, MMCE, Varifocal.

With ``use_sigmoid=False`` they take the logits ``(N, K)`` and labels ``(N,)`` of a classifier. With
``use_sigmoid=True`` they take logits ``(N, C)`` and the targets of MMDetection's dense heads:
labels ``(N,)`` in which C is background, labels with qualities as in Quality Focal Loss, or dense
targets ``(N, C)`` in [0, 1]. The reduction is MMDetection's: a sum over anchors and classes divided
by ``avg_factor``, or the mean of all elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Union

import torch
from torch import Tensor, nn

from gfl_det.models.losses import functional
from gfl_det.models.losses.modules import REDUCTIONS, Reduction, dense_quality, reduce_loss
from gfl_det.ops.distribution import full_precision
from gfl_det.registry import MODELS

Target = Union[Tensor, tuple[Tensor, Tensor]]


class ScoreLoss(nn.Module):
    """Base class of the losses below: targets, weights and reduction.

    Args:
        use_sigmoid: Scores are sigmoids, one per class, instead of a softmax.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
    """

    def __init__(
        self, use_sigmoid: bool = True, reduction: Reduction = 'mean', loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction must be one of {REDUCTIONS}, not {reduction!r}')
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
        """Loss of logits against their target (the module docstring lists the forms).

        Args:
            pred: ``(N, K)`` logits.
            target: Labels, labels with qualities, or dense targets.
            weight: ``(N,)``, or with sigmoids ``(N, C)`` or its flattened form.
            avg_factor: Divisor of the sum for 'mean'.
            reduction_override: Replaces ``reduction``.

        Returns:
            Scalar; without reduction ``(N, C)`` with sigmoids, ``(N,)`` with a softmax.

        Raises:
            ValueError: If the target has none of these forms.
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
        """Loss per element, all ``(N, C)``; ``positive`` marks the assigned classes."""
        raise NotImplementedError

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss ``(N,)`` of logits ``(N, K)`` against labels ``(N,)``."""
        raise NotImplementedError


def quality_and_positive(logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Dense targets ``(N, C)`` and the mask of assigned classes.

    Example:
        >>> quality_and_positive(torch.zeros(2, 2), torch.tensor([1, 2]))
        (tensor([[0., 1.],
                [0., 0.]]), tensor([[False,  True],
                [False, False]]))
    """
    if isinstance(target, Tensor) and target.dim() == 1:
        target = (target, logits.new_ones(len(target)))
    quality = dense_quality(logits, target)
    if isinstance(target, Tensor):
        return quality, quality > 0
    labels = target[0]
    assigned = dense_quality(logits, (labels, logits.new_ones(len(labels))))
    return quality, assigned > 0


def spread_weight(weight: Tensor, logits: Tensor) -> Tensor:
    """Reshape anchor weights ``(N,)`` to ``(N, 1)``, or element weights of any shape to ``(N, C)``.

    Example:
        >>> spread_weight(torch.ones(3), torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """
    return weight.reshape(logits.shape if weight.numel() == logits.numel() else (-1, 1))


def softmax_labels(target: Target) -> Tensor:
    """The target as labels ``(N,)``.

    Raises:
        ValueError: If the target is not a tensor of labels.

    Example:
        >>> softmax_labels(torch.tensor([0, 2]))
        tensor([0, 2])
    """
    if not isinstance(target, Tensor) or target.dim() != 1:
        raise ValueError(
            'with a softmax the target must be labels (N,): set use_sigmoid=True for other targets'
        )
    return target


def balanced(loss: Tensor, positive: Tensor, alpha: float | None) -> Tensor:
    """Weight positives by alpha and negatives by 1 - alpha; None leaves the loss unchanged.

    Example:
        >>> balanced(torch.ones(2), torch.tensor([True, False]), alpha=0.25)
        tensor([0.2500, 0.7500])
    """
    if alpha is None:
        return loss
    return loss * torch.where(positive, alpha, 1 - alpha)


def checked_alpha(alpha: float | None) -> float | None:
    """Check and return the weight of positives.

    Raises:
        ValueError: If alpha is outside [0, 1].

    Example:
        >>> checked_alpha(0.25)
        0.25
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be in [0, 1] or None, not {alpha!r}')
    return alpha


@MODELS.register_module()
class FocalLoss(ScoreLoss):
    """Focal loss, or Quality Focal Loss for quality targets; a drop-in for mmdet's ``FocalLoss``.

    Gamma is ``gamma`` itself; or derived from ``p0``, where the gradient equals that of cross
    entropy; or chosen from ``gammas`` by the probability of the true class, as in FLSD-53:
    ``gammas=(5, 3), thresholds=(0.2,)``.

    Args:
        use_sigmoid: Scores are sigmoids, one per class, instead of a softmax.
        gamma: Focusing parameter, at least 0.
        alpha: With sigmoids, weight of positives, and 1 - alpha of negatives; None for no weights,
            as in Quality Focal Loss.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
        activated: Must be False; accepted for compatibility with mmdet's configs.
        detach_weight: Block the gradient through the weight, which moves the optimum.
        p0: Probability in (0, 1); from .5 on, cross entropy.
        max_gamma: Upper bound of the gamma from ``p0``, which diverges as p0 approaches 0.
        gammas: Gamma below the first threshold, between the first and the second, and so on.
        thresholds: Ascending probabilities, one fewer than gammas.

    Raises:
        ValueError: If an argument is out of range, or ``p0`` and ``gammas`` are both given.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float | None = 0.25,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
        *,
        detach_weight: bool = False,
        p0: float | None = None,
        max_gamma: float = 5.0,
        gammas: Sequence[float] | None = None,
        thresholds: Sequence[float] = (0.2,),
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight)
        if activated:
            raise ValueError('gfl_det.FocalLoss takes logits: set activated=False')
        if p0 is not None and gammas is not None:
            raise ValueError('give p0 or gammas to FocalLoss, not both')
        if p0 is not None:
            gamma = min(functional.automatic_gamma(p0), max_gamma)
        steps = (gamma,) if gammas is None else tuple(gammas)
        edges = () if gammas is None else tuple(thresholds)
        if not all(step >= 0 for step in steps):
            raise ValueError(f'gamma of FocalLoss must be at least 0, not {steps}')
        if len(edges) != len(steps) - 1 or list(edges) != sorted(edges):
            raise ValueError(
                f'FocalLoss needs ascending thresholds, one fewer than {steps}, not {edges}'
            )
        self.alpha = checked_alpha(alpha)
        self.detach_weight = detach_weight
        self.gammas: tuple[float, ...] = steps
        self.thresholds: tuple[float, ...] = edges

    def set_gamma(self, gamma: float) -> None:
        """Set one gamma for all samples.

        Raises:
            ValueError: If gamma is negative.
        """
        if not gamma >= 0:
            raise ValueError(f'gamma of FocalLoss must be at least 0, not {gamma!r}')
        self.gammas, self.thresholds = (gamma,), ()

    def _gamma(self, probability: Tensor) -> float | Tensor:
        if not self.thresholds:
            return self.gammas[0]
        return functional.gamma_by_sample(probability, self.gammas, self.thresholds)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        likeness = 1 - (quality - logits.sigmoid()).abs()
        gamma = self._gamma(likeness)
        loss = functional.quality_focal_loss(logits, quality, gamma, self.detach_weight)
        return balanced(loss, positive, self.alpha)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logs = functional.true_log_probability(logits, labels)
        return functional.focal_loss(logs, self._gamma(logs.exp()), self.detach_weight)


@MODELS.register_module()
class InverseFocalLoss(ScoreLoss):
    """Inverse focal loss, which rewards confidence; meant for post-hoc calibration.

    With a gradient through the weight, a true probability of .5 has two separate optima at gamma 2,
    and one optimum up to gamma 1.5.

    Args:
        use_sigmoid: Scores are sigmoids, one per class, instead of a softmax.
        gamma: At least 0; at most 3.59 with a gradient through the weight.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
        detach_weight: Block the gradient through the weight.
        negatives: With sigmoids, the loss of negatives: 'focal' for Quality Focal Loss, or
            'inverse' for the loss of positives, with everything scaled by 2^-gamma so that easy
            negatives do not dominate.
        beta: Focusing parameter of the negatives' Quality Focal Loss.
        alpha: With sigmoids, weight of positives, and 1 - alpha of negatives; None for no weights.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 1.5,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
        *,
        detach_weight: bool = False,
        negatives: Literal['focal', 'inverse'] = 'focal',
        beta: float = 2.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight)
        functional.check_inverse_gamma(gamma, detach_weight)
        if negatives not in ('focal', 'inverse'):
            raise ValueError(f"negatives must be 'focal' or 'inverse', not {negatives!r}")
        self.gamma, self.beta, self.negatives = gamma, beta, negatives
        self.detach_weight = detach_weight
        self.alpha = checked_alpha(alpha)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        loss = functional.quality_inverse_focal(logits, quality, self.gamma, self.detach_weight)
        if self.negatives == 'inverse':
            loss = loss * 2**-self.gamma
        else:
            loss = torch.where(
                positive, loss, functional.quality_focal_loss(logits, quality, self.beta)
            )
        return balanced(loss, positive, self.alpha)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logs = functional.true_log_probability(logits, labels)
        return functional.inverse_focal_loss(logs, self.gamma, self.detach_weight)


@MODELS.register_module()
class BrierLoss(ScoreLoss):
    """Brier score: squared distance to the label, summed over classes with a softmax.

    Args:
        use_sigmoid: Scores are sigmoids, one per class, instead of a softmax.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
    """

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        return functional.quality_brier(logits, quality)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.brier_loss(logits, labels)


@MODELS.register_module()
class LabelSmoothingLoss(ScoreLoss):
    """Cross entropy, or Quality Focal Loss, against smoothed targets.

    Args:
        use_sigmoid: Scores are sigmoids, one per class, and not a softmax; then only the targets of
            positives are smoothed.
        smoothing: Fraction of the target that is spread evenly, in [0, 1).
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
        beta: Focusing parameter with sigmoids; 0 is cross entropy, 2 Quality Focal Loss.

    Raises:
        ValueError: If ``smoothing`` is outside [0, 1).
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
            raise ValueError(f'smoothing must be in [0, 1), not {smoothing!r}')
        self.smoothing, self.beta = smoothing, beta

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        smooth = functional.smooth_quality(quality, positive, self.smoothing)
        return functional.quality_focal_loss(logits, smooth, self.beta)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.label_smoothing_loss(logits, labels, self.smoothing)


@MODELS.register_module()
class MMCELoss(ScoreLoss):
    """Cross entropy, or Quality Focal Loss, plus the kernel calibration error MMCE.

    With a softmax, the error compares the largest probability with its correctness; with sigmoids,
    it compares the scores of positives and of equally many of the highest-scored negatives with
    their qualities. Memory grows with the square of the samples, at most 1024 with sigmoids.

    Args:
        use_sigmoid: Scores are sigmoids, one per class, instead of a softmax.
        mmce_weight: Factor of the error relative to the mean loss (times N for a sum).
        reduction: 'mean' or 'sum'.
        loss_weight: Factor applied to the result.
        weighted: Give correct and incorrect samples equal weight; softmax only.
        beta: Focusing parameter of the base loss with sigmoids.

    Raises:
        ValueError: If the reduction is 'none', which MMCE does not support, or ``weighted`` is used
            with sigmoids.
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
                'MMCELoss(weighted=True) needs right and wrong samples: set use_sigmoid=False'
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
        """Base loss plus the error, which ignores samples of weight 0."""
        reduction = reduction_override or self.reduction
        if reduction == 'none':
            raise ValueError('MMCELoss has no loss per sample: use reduction "mean" or "sum"')
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
            chosen = functional.paired_subset(scores, positive[counted])
            return functional.mmce(scores[chosen], quality[chosen])
        labels = softmax_labels(target)
        if weight is not None:
            logits, labels = logits[weight > 0], labels[weight > 0]
        confidence, guess = logits.softmax(-1).max(-1)
        measure = functional.weighted_mmce if self.weighted else functional.mmce
        return measure(confidence, guess == labels)

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        return functional.quality_focal_loss(logits, quality, self.beta)

    def softmax_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -functional.true_log_probability(logits, labels)


@MODELS.register_module()
class VarifocalLoss(ScoreLoss):
    """Varifocal Loss (VarifocalNet, CVPR 2021, eq. 2), a drop-in for mmdet's.

    Like Quality Focal Loss, it trains quality scores, but only negatives are focal, and positives
    are weighted by their quality. ``GFLHead`` sums it in the same fused way; called directly, it
    takes targets ``(N, C)`` as in mmdet, or labels with qualities. In the place of Quality Focal
    Loss it brought no AP on blood cells (.000, .95 interval -.015 to .015; results on accuracy).

    Args:
        use_sigmoid: Must be True; accepted for compatibility with mmdet's configs.
        alpha: Weight of negatives, at least 0.
        gamma: Focusing parameter of negatives, at least 0.
        iou_weighted: Weight positives by their quality, as in the paper.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor applied to the result.

    Raises:
        ValueError: If ``use_sigmoid`` is False, or ``alpha`` or ``gamma`` is negative.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        if not use_sigmoid:
            raise ValueError('VarifocalLoss has one score per class: leave use_sigmoid=True')
        if not (alpha >= 0 and gamma >= 0):
            raise ValueError(
                f'alpha and gamma of VarifocalLoss must be at least 0, not {alpha!r} and {gamma!r}'
            )
        super().__init__(use_sigmoid, reduction, loss_weight)
        self.alpha, self.gamma, self.iou_weighted = alpha, gamma, iou_weighted

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        settings = self.alpha, self.gamma, self.iou_weighted
        return functional.varifocal_loss(logits, quality, *settings)
