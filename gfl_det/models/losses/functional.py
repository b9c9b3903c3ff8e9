"""The equations of Generalized Focal Loss and of its peer: pure, unreduced, torch alone.

Sources: Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for
Dense Object Detection", NeurIPS 2020; Zhang et al., "VarifocalNet: An IoU-aware Dense Object
Detector", CVPR 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl_det.ops.distribution import full_precision, two_bin_target


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality Focal Loss, eq. 2: ``|y - s|^beta * BCE(s, y)`` with ``s = sigmoid(logit)``.

    Args:
        logits: any shape.
        quality: target y in [0, 1], broadcasts with logits; 0 for a negative.
        beta: focusing parameter, at least 0.

    Returns:
        Loss of each element; at y = 0 it is ``s^beta * softplus(logit)``.
    """
    entropy = F.softplus(logits) - quality * logits
    return entropy * (quality - logits.sigmoid()).abs().pow(beta)


def quality_focal_loss_from_scores(scores: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality Focal Loss of scores that are probabilities already.

    Written out, because PyTorch refuses its own binary cross entropy under autocast. As there, a
    logarithm is not taken below -100.

    Args:
        scores: any shape, in [0, 1].
        quality: target in [0, 1], broadcasts with scores.
        beta: focusing parameter, at least 0.

    Returns:
        Loss of each element.
    """
    entropy = -(
        quality * scores.log().clamp(min=-100) + (1 - quality) * (-scores).log1p().clamp(min=-100)
    )
    return entropy * (quality - scores).abs().pow(beta)


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution Focal Loss, eq. 6: cross entropy against the two bins around a distance.

    Args:
        logits: ``(..., num_bins)``.
        distances: ``(...)`` in strides, clamped to [0, num_bins - 1].

    Returns:
        ``(...)`` loss of each edge.
    """
    target = two_bin_target(distances, logits.shape[-1])
    log_probabilities = logits.log_softmax(-1)
    left = log_probabilities.gather(-1, target.left.unsqueeze(-1)).squeeze(-1)
    right = log_probabilities.gather(-1, target.left.unsqueeze(-1) + 1).squeeze(-1)
    return -(target.left_weight * left + target.right_weight * right)


def quality_focal_gradient(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Derivative of :func:`quality_focal_loss` by the logits, in closed form.

    With d = s - y it is ``|d|^beta * d + beta * |d|^(beta - 1) * sign(d) * s (1 - s) * BCE(s, y)``.

    Args:
        logits: any shape.
        quality: target in [0, 1], broadcasts with logits.
        beta: focusing parameter, at least 0.

    Returns:
        Derivative of each element.
    """
    scores = logits.sigmoid()
    difference = scores - quality
    size = difference.abs()
    entropy = F.softplus(logits) - quality * logits
    slope = scores * (1 - scores) * entropy
    if beta == 0:
        return difference
    # |d|^(beta-1) diverges at d = 0 for beta < 1, where the loss has a kink: 0 is its subgradient.
    power = size.pow(beta - 1).where(size > 0, torch.zeros_like(size))
    return size.pow(beta) * difference + beta * power * difference.sign() * slope


def varifocal_loss(
    logits: Tensor,
    quality: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
) -> Tensor:
    """Varifocal Loss (VarifocalNet, eq. 2): focal for negatives alone.

    Args:
        logits: any shape.
        quality: target q in [0, 1], broadcasts with logits; 0 for a negative.
        alpha: weight of negatives.
        gamma: focusing parameter of negatives, at least 0.
        iou_weighted: weigh a positive by its quality, as the paper does.

    Returns:
        Loss of each element: ``q * BCE(s, q)`` where q > 0, else ``alpha * s^gamma * softplus``.
    """
    weight = quality if iou_weighted else torch.ones_like(quality)
    positive = weight * (F.softplus(logits) - quality * logits)
    negative = alpha * quality_focal_loss(logits, torch.zeros_like(quality), gamma)
    return positive.where(quality > 0, negative)


def varifocal_gradient(
    logits: Tensor,
    quality: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
) -> Tensor:
    """Derivative of :func:`varifocal_loss`, whose arguments these are, by the logits."""
    weight = quality if iou_weighted else torch.ones_like(quality)
    positive = weight * (logits.sigmoid() - quality)
    negative = alpha * quality_focal_gradient(logits, torch.zeros_like(quality), gamma)
    return positive.where(quality > 0, negative)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of softened distributions: ``T^2 * KL(p || q)``, p the teacher's softmax at T.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: the factor keeps
    the gradients' size as the temperature grows. On the bins of an edge it is the localization
    distillation of Zheng et al., CVPR 2022.

    Args:
        logits: ``(..., n)`` of the student.
        teacher: ``(..., n)``; gets no gradient.
        temperature: T, above 0.

    Returns:
        ``(...)``, the sum over n; 0 where both distributions are equal.
    """
    ours = (full_precision(logits) / temperature).log_softmax(-1)
    theirs = (full_precision(teacher.detach()) / temperature).log_softmax(-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)
