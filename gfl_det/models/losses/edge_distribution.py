"""Mean and Distribution Focal Loss of edge distributions in one pass, with its own backward.

Both start from the same softmax. With p the probabilities, i the bins' distances, m the mean and t
the two-bin target, the derivatives by the logits are ``p (i - m)`` and ``p - t``: so the
probabilities are all that is kept, and no intermediate of their size is made in backward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gfl_det.ops.distribution import bin_positions, full_precision, two_bin_target


class _MeanAndLoss(torch.autograd.Function):
    # Untyped: torch passes to forward what apply was given, and annotates neither method.
    @staticmethod
    def forward(ctx, logits, distances):  # type: ignore[no-untyped-def]
        values = full_precision(logits).log_softmax(-1)
        target = two_bin_target(distances.to(values.dtype), logits.shape[-1])
        left = target.left.unsqueeze(-1)
        loss = -(
            target.left_weight * values.gather(-1, left).squeeze(-1)
            + target.right_weight * values.gather(-1, left + 1).squeeze(-1)
        )
        probabilities = values.exp_()
        mean = probabilities @ bin_positions(logits)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(probabilities, mean, *target)
        return mean, loss

    @staticmethod
    @once_differentiable
    def backward(ctx, mean_gradient, loss_gradient):  # type: ignore[no-untyped-def]
        probabilities, mean, left, left_weight, right_weight = ctx.saved_tensors
        offset = loss_gradient - mean_gradient * mean
        gradient = mean_gradient.unsqueeze(-1) * bin_positions(probabilities)
        gradient.add_(offset.unsqueeze(-1)).mul_(probabilities)
        both = torch.stack([left_weight, right_weight], dim=-1) * -loss_gradient.unsqueeze(-1)
        gradient.scatter_add_(-1, torch.stack([left, left + 1], dim=-1), both)
        return gradient.to(ctx.dtype), None


def mean_and_focal_loss(logits: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`..distribution.mean` and :func:`.functional.distribution_focal_loss` together.

    Args:
        logits: ``(..., num_bins)``.
        distances: ``(...)`` in strides, clamped to [0, num_bins - 1]; get no gradient.

    Returns:
        The means ``(...)`` in strides and the losses ``(...)``.
    """
    return _MeanAndLoss.apply(logits, distances)
