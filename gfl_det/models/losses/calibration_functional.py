"""Brier score, label smoothing and kernel calibration error as losses: pure equations.

Sources: Brier, 1950; Szegedy et al., CVPR 2016 (label smoothing); Kumar, Sarawagi and Jain,
"Trainable Calibration Measures for Neural Networks from Kernel Mean Embeddings", ICML 2018 (MMCE).
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_WIDTH = 0.4  # of exp(-|a - b| / width)
MAX_PAIRED = 1024  # samples that a kernel error is taken over: its memory grows with their square


def brier_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of the softmax to the one-hot truth, summed over classes.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64 in 0..K-1.

    Returns:
        ``(N,)`` in [0, 2].
    """
    truth = torch.nn.functional.one_hot(labels, logits.shape[-1])
    return (truth - logits.softmax(-1)).square().sum(-1)


def quality_brier(logits: Tensor, quality: Tensor) -> Tensor:
    """``(y - s)^2`` with ``s = sigmoid(logit)``, of each element; y broadcasts with logits."""
    return (quality - logits.sigmoid()).square()


def label_smoothing_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy against ``(1 - e) * onehot + e / K``.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64 in 0..K-1.
        smoothing: e in [0, 1).

    Returns:
        ``(N,)``.
    """
    logs = logits.log_softmax(-1)
    true = logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -(1 - smoothing) * true - smoothing * logs.mean(-1)


def smooth_quality(quality: Tensor, positive: Tensor, smoothing: float) -> Tensor:
    """Targets ``y (1 - e) + e / 2`` at the positives alone.

    Smoothing the far more numerous negatives too would swamp the loss.

    Args:
        quality: in [0, 1], any shape.
        positive: bool, of the same shape.
        smoothing: e in [0, 1).
    """
    return torch.where(positive, quality * (1 - smoothing) + smoothing / 2, quality)


def mmce(confidence: Tensor, correct: Tensor, width: float = KERNEL_WIDTH) -> Tensor:
    """Squared maximum mean calibration error: ``sum_ij (r_i-c_i)(r_j-c_j) k(c_i, c_j) / N^2``.

    Args:
        confidence: c ``(N,)`` in [0, 1].
        correct: r ``(N,)`` in [0, 1]: whether each is right, or how right.
        width: of the kernel ``exp(-|a - b| / width)``.

    Returns:
        Scalar, at least 0; 0 of nothing.
    """
    error = correct.to(confidence.dtype) - confidence
    kernel = _kernel(confidence, width)
    return (error[:, None] * error * kernel).sum() / max(1, len(confidence)) ** 2


def weighted_mmce(
    confidence: Tensor,
    correct: Tensor,
    width: float = KERNEL_WIDTH,
    as_published: bool = False,
) -> Tensor:
    """MMCE with right and wrong samples weighing the same.

    ``sqrt(mean_RR (1-c)(1-c')k + mean_WW c c' k - 2 mean_RW (1-c) c' k + 1e-10)`` over pairs of
    right (R) and wrong (W) samples.

    Args:
        confidence: c ``(N,)`` in [0, 1].
        correct: ``(N,)`` bool.
        width: of the kernel.
        as_published: divide each mean by its number of pairs once more, as the published code does,
            which leaves next to nothing of the term.

    Returns:
        Scalar; 0 where all samples are right, or all wrong.
    """
    right = correct.to(confidence.dtype)
    wrong = 1 - right
    kernel = _kernel(confidence, width)
    under, over = right * (1 - confidence), wrong * confidence
    number_right, number_wrong = right.sum(), wrong.sum()
    mixed = (number_right > 0) & (number_wrong > 0)
    total = confidence.new_full((), 1e-10)
    for first, second, pairs in (
        (under, under, number_right * number_right),
        (over, over, number_wrong * number_wrong),
        (-2 * under, over, number_right * number_wrong),
    ):
        pairs = pairs.clamp(min=1) ** (2 if as_published else 1)
        total = total + (first[:, None] * second * kernel).sum() / pairs
    # Outside the mixed case the root gets a harmless value, lest its derivative there be NaN.
    root = total.clamp(min=0).where(mixed, total.new_ones(())).sqrt()
    return root.where(mixed, root.new_zeros(()))


def paired_subset(scores: Tensor, positive: Tensor, limit: int = MAX_PAIRED) -> Tensor:
    """Positives and as many of the highest-scored negatives, by descending score in both.

    Args:
        scores: ``(M,)`` in [0, 1].
        positive: ``(M,)`` bool.
        limit: of the whole, an even number.

    Returns:
        Indices ``(S,)``, S at most ``limit``.
    """
    scores, number = scores.detach(), int(positive.sum())
    wanted = min(number, limit // 2)
    best = scores.masked_fill(~positive, -1).topk(wanted).indices
    others = scores.masked_fill(positive, -1).topk(min(wanted, len(scores) - number)).indices
    return torch.cat([best, others])


def _kernel(confidence: Tensor, width: float) -> Tensor:
    return (-(confidence[:, None] - confidence).abs() / width).exp()
