"""Fused sums over a pyramid of losses that are focal at target 0, with a custom backward.

Nearly all targets are 0. The sum is therefore computed as if every target were 0, in memory order
and in blocks that stay in cache, and then corrected at the few entries of positives. One pass gives
value and gradient, and only the gradient, as large as the logits, is kept for backward;
MMDetection's dense version permutes, copies and keeps five times as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gfl_det.compat.environment import graph_is_kept
from gfl_det.models.losses.functional import (
    quality_focal_gradient,
    quality_focal_loss,
    varifocal_gradient,
    varifocal_loss,
)
from gfl_det.ops.distribution import bin_positions, full_precision, two_bin_target
from gfl_det.ops.layout import Layout, write_valid

# Logits per block on a CPU: 3 MiB with three float32 temporaries, within the caches of two cores.
BLOCK = 2**18
Equation = Callable[..., Tensor]
# A logit whose loss and gradient at target 0 are exactly 0, also in half precision.
EXCLUDED_LOGIT = -1e4


class TargetEntries(NamedTuple):
    """Logits whose (target, weight) differs from (0, 1); valid entries are distinct."""

    valid: Tensor  # (N,) bool; invalid entries have no effect
    level: Tensor  # (N,) int64
    image: Tensor  # (N,) int64
    label: Tensor  # (N,) int64, the channel
    cell: Tensor  # (N,) int64, row * width + column
    quality: Tensor  # (N,) target in [0, 1]

    def of_level(self, level: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Mask ``(N,)`` of the entries on a level, and their indices in its ``(B, C, H * W)``."""
        on = self.valid & (self.level == level)
        places = (self.image, self.label, self.cell)
        image, label, cell = (place.where(on, place.new_zeros(())) for place in places)
        return on, (image, label, cell)


class ElementLoss(NamedTuple):
    """Loss of logits against qualities that equals ``factor * s^beta * softplus`` at target 0."""

    equation: Equation
    gradient: Equation  # derivative with respect to the logits
    arguments: tuple[float, ...]  # of both, after logits and qualities
    beta: float
    factor: float

    @classmethod
    def quality_focal(cls, beta: float) -> ElementLoss:
        """Quality Focal Loss."""
        return cls(quality_focal_loss, quality_focal_gradient, (beta,), beta, 1.0)

    @classmethod
    def varifocal(cls, alpha: float, gamma: float, iou_weighted: bool) -> ElementLoss:
        """Varifocal Loss."""
        arguments = (alpha, gamma, iou_weighted)
        return cls(varifocal_loss, varifocal_gradient, arguments, gamma, alpha)


def _blocks(maps: Tensor) -> Iterator[tuple[slice, ...]]:
    """Slices of a level ``(B, C, H, W)`` along the axis that keeps memory runs long."""
    images, channels, height, width = maps.shape
    if maps.device.type != 'cpu' or torch.compiler.is_compiling():
        yield (slice(None),)
    elif maps.is_contiguous():
        size = max(1, BLOCK // max(1, images * height * width))
        for begin in range(0, channels, size):
            yield slice(None), slice(begin, begin + size)
    else:
        size = max(1, BLOCK // max(1, images * channels * width))
        for begin in range(0, height, size):
            yield slice(None), slice(None), slice(begin, begin + size)


def _block(maps: Tensor, excluded: Tensor | None, where: tuple[slice, ...]) -> Tensor:
    logits = maps[where]
    if excluded is not None:
        logits = logits.masked_fill(excluded.expand_as(maps)[where], EXCLUDED_LOGIT)
    return full_precision(logits)


def _negative_sums(
    maps: Tensor, excluded: Tensor | None, beta: float, scale: Tensor, gradient: Tensor | None
) -> list[Tensor]:
    """Sums per block of ``scale`` times the loss at target 0, ``v = s^beta * softplus``.

    If ``gradient`` is given, also writes ``scale`` times the derivative ``s^beta (s + beta (1 - s)
    softplus)`` to it, as ``s (s^beta - beta v) + beta v``, which needs no extra memory.
    """
    sums = []
    for where in _blocks(maps):
        logits = _block(maps, excluded, where)
        scores, loss = logits.sigmoid(), F.softplus(logits)
        focus = scores.square() if beta == 2 else scores.pow(beta)
        loss.mul_(focus.mul_(scale))
        # torch's pairwise sum keeps 1e-5 in float32 within a block; blocks are added in float64.
        sums.append(loss.sum().double())
        if gradient is not None:
            loss.mul_(beta)
            torch.addcmul(loss, scores, focus.sub_(loss), out=gradient[where])
    return sums


class _FocalSum(torch.autograd.Function):
    # Untyped: torch annotates neither method.
    @staticmethod
    def forward(ctx, loss, weight, scale, excluded, entries, *maps):  # type: ignore[no-untyped-def]
        kept = full_precision(maps[0]).dtype
        scale = scale.to(kept)
        ctx.layouts, ctx.dtype = [Layout.of(level) for level in maps], maps[0].dtype
        parts, memories = [], []
        chosen = torch.zeros_like(entries.quality, dtype=kept)
        places = [entries.of_level(level) for level in range(len(maps))]
        for level, (logits, mask) in enumerate(zip(maps, excluded)):
            gradient = None
            if any(ctx.needs_input_grad):
                # One place more than the maps need: nowhere, for invalid entries.
                memories.append(logits.new_empty(logits.numel() + 1, dtype=kept))
                gradient = ctx.layouts[level].view(memories[-1])
            parts += _negative_sums(logits, mask, loss.beta, loss.factor * scale, gradient)
            on, place = places[level]
            chosen = logits.flatten(2)[place].to(kept).where(on, chosen)
        if memories:
            slope = weight * scale * loss.gradient(chosen, entries.quality, *loss.arguments)
            for memory, layout, (on, place) in zip(memories, ctx.layouts, places):
                write_valid(memory, layout.address(*place), on, slope.to(kept))
        ctx.save_for_backward(*memories)
        change = weight * loss.equation(chosen, entries.quality, *loss.arguments)
        change = change - loss.equation(chosen, torch.zeros_like(chosen), *loss.arguments)
        change = change.where(entries.valid, change.new_zeros(())).sum() * scale
        return torch.stack([*parts, change.double()]).sum().to(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx, factor):  # type: ignore[no-untyped-def]
        levels = [layout.view(each) for layout, each in zip(ctx.layouts, ctx.saved_tensors)]
        # The receiver may change the returned gradient in place, as .grad.zero_() does: the saved
        # tensor itself is returned only if no later backward needs it.
        if not _is_one(factor) or graph_is_kept():
            levels = [level * factor for level in levels]
        return None, None, None, None, None, *(level.to(ctx.dtype) for level in levels)


def _is_one(factor: Tensor) -> bool:
    """Whether a scalar is known to be 1 without a device synchronisation."""
    return factor.device.type == 'cpu' and not torch.compiler.is_compiling() and float(factor) == 1


def focal_sum(
    maps: Sequence[Tensor],
    entries: TargetEntries,
    excluded: Sequence[Tensor | None],
    loss: ElementLoss,
    weight: float = 1.0,
    scale: Tensor | None = None,
) -> Tensor:
    """Sum of a loss over all classes, cells, levels and images.

    The gradient is computed with the value, so pass known factors, such as the normaliser, as
    ``scale``: the incoming gradient is then mostly 1, and on a CPU the saved one is returned
    unchanged.

    Args:
        maps: Logits, per level ``(B, C, H, W)``.
        entries: Entries with a target or weight of their own.
        excluded: Per level ``(B, 1, H, W)`` bool, cells to leave out, or None; no valid entry may
            lie in one.
        loss: Loss per logit.
        weight: Weight of the loss at the entries.
        scale: Scalar factor of the sum, without gradient; None is 1.

    Returns:
        Scalar, float32 (float64 for float64 logits), with a relative error of about 1e-7.

    Example:
        >>> one, label, quality = torch.zeros(1, dtype=int), torch.ones(1, dtype=int), torch.ones(1)
        >>> entries = TargetEntries(one == 0, one, one, label, one, quality)
        >>> loss = ElementLoss.quality_focal(beta=2.0)
        >>> focal_sum([torch.zeros(1, 2, 1, 1)], entries, [None], loss)  # two of .25 * log(2)
        tensor(0.3466)
    """
    dense = [level if _is_dense(level) else level.contiguous() for level in maps]
    scale = dense[0].new_ones(()) if scale is None else scale.detach()
    return _FocalSum.apply(loss, weight, scale, list(excluded), entries, *dense)


def _is_dense(maps: Tensor) -> bool:
    return maps.is_contiguous() or maps.is_contiguous(memory_format=torch.channels_last)


class _MeanAndLoss(torch.autograd.Function):
    # Untyped: torch annotates neither method.
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
        ctx.save_for_backward(probabilities, mean, distances)
        return mean, loss

    @staticmethod
    @once_differentiable
    def backward(ctx, mean_gradient, loss_gradient):  # type: ignore[no-untyped-def]
        probabilities, mean, distances = ctx.saved_tensors
        target = two_bin_target(distances.to(mean.dtype), probabilities.shape[-1])
        offset = loss_gradient - mean_gradient * mean
        gradient = mean_gradient.unsqueeze(-1) * bin_positions(probabilities)
        gradient.add_(offset.unsqueeze(-1)).mul_(probabilities)
        both = torch.stack([target.left_weight, target.right_weight], dim=-1)
        bins = torch.stack([target.left, target.left + 1], dim=-1)
        gradient.scatter_add_(-1, bins, both * -loss_gradient.unsqueeze(-1))
        return gradient.to(ctx.dtype), None


def mean_and_focal_loss(logits: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`..distribution.mean` and :func:`.functional.distribution_focal_loss` in one pass.

    Args:
        logits: ``(..., num_bins)``.
        distances: ``(...)`` in strides, clamped to [0, num_bins - 1]; no gradient.

    Returns:
        Means ``(...)`` in strides and losses ``(...)``.

    Example:
        >>> mean, loss = mean_and_focal_loss(torch.zeros(1, 3), torch.tensor([0.5]))
        >>> mean, loss  # the middle of three bins, and log(3)
        (tensor([1.0000]), tensor([1.0986]))
    """
    return _MeanAndLoss.apply(logits, distances)
