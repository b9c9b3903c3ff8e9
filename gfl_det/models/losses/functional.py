"""Equations of all losses as pure, unreduced functions; torch only.

In order: Quality Focal Loss, Distribution Focal Loss and divergence from a teacher; Varifocal Loss;
focal losses of classification; Brier score and label smoothing; kernel calibration errors.
:mod:`.modules` and :mod:`.score_losses` wrap them as modules, :mod:`.fused` sums them over a
pyramid.

Sources: Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for
Dense Object Detection", NeurIPS 2020; Zhang et al., "VarifocalNet: An IoU-aware Dense Object
Detector", CVPR 2021; Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS
2020; Kumar et al., "Trainable Calibration Measures for Neural Networks", ICML 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl_det.ops.distribution import full_precision, two_bin_target

# --- Building blocks ------------------------------------------------------------------------------


def power(base: Tensor, exponent: float | Tensor) -> Tensor:
    """``base ** exponent`` with a finite derivative at base 0.

    The derivative of torch's own power may be infinite there and become NaN.

    Args:
        base: At least 0.
        exponent: Broadcasts with base. At base 0 the result is 1 for exponent 0, otherwise 0, also
            for negative exponents; the derivative is 0 unless the exponent is 1.

    Example:
        >>> power(torch.tensor([0.0, 4.0]), 0.5)
        tensor([0., 2.])
    """
    if not isinstance(exponent, Tensor) and (exponent == 0 or exponent >= 1):
        return base.pow(exponent)
    positive = base > 0
    inside = base.where(positive, torch.ones_like(base)).pow(exponent)
    at_zero = torch.as_tensor(exponent, device=base.device) == 0
    return inside.where(positive, at_zero.to(inside.dtype))


def quality_entropy(logits: Tensor, quality: Tensor) -> Tensor:
    """Element-wise binary cross entropy of sigmoid scores against targets in [0, 1].

    Example:
        >>> quality_entropy(torch.zeros(1), torch.tensor([0.5]))  # log 2
        tensor([0.6931])
    """
    return F.softplus(logits) - quality * logits


# --- Generalized Focal Loss: scores that are qualities, and edges that are distributions ----------


def quality_focal_loss(
    logits: Tensor, quality: Tensor, beta: float | Tensor = 2.0, detach_weight: bool = False
) -> Tensor:
    """Quality Focal Loss, eq. 2: ``|y - s|^beta * BCE(s, y)`` with ``s = sigmoid(logit)``.

    Args:
        logits: Any shape.
        quality: Target y in [0, 1], broadcasts with logits; 0 for a negative.
        beta: Focusing parameter, at least 0; broadcasts with logits.
        detach_weight: Block the gradient through ``|y - s|^beta``.

    Returns:
        Loss per element: ``s^beta * softplus(logit)`` at y = 0, and :func:`focal_loss` for targets
        0 and 1. The gradient is finite, and 0 at s = y.

    Example:
        >>> logits = torch.logit(torch.tensor([0.5, 0.8]))
        >>> quality_focal_loss(logits, torch.tensor([0.8, 0.8]))
        tensor([0.0624, 0.0000])
    """
    weight = power((quality - logits.sigmoid()).abs(), beta)
    return (weight.detach() if detach_weight else weight) * quality_entropy(logits, quality)


def quality_focal_loss_from_scores(scores: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality Focal Loss of scores that are already probabilities.

    Written out because PyTorch rejects its binary cross entropy under autocast. Logarithms are
    clamped at -100, as in PyTorch.

    Args:
        scores: Any shape, in [0, 1].
        quality: Target in [0, 1], broadcasts with scores.
        beta: Focusing parameter, at least 0.

    Returns:
        Loss per element.

    Example:
        >>> quality_focal_loss_from_scores(torch.tensor([0.5, 0.8]), torch.tensor([0.8, 0.8]))
        tensor([0.0624, 0.0000])
    """
    entropy = -(
        quality * scores.log().clamp(min=-100) + (1 - quality) * (-scores).log1p().clamp(min=-100)
    )
    return power((quality - scores).abs(), beta) * entropy


def quality_focal_gradient(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Derivative of :func:`quality_focal_loss` with respect to the logits, in closed form.

    With d = s - y it is ``|d|^beta * d + beta * |d|^(beta - 1) * sign(d) * s (1 - s) * BCE(s, y)``.

    Args:
        logits: Any shape.
        quality: Target in [0, 1], broadcasts with logits.
        beta: Focusing parameter, at least 0.

    Returns:
        Derivative per element.

    Example:
        >>> quality_focal_gradient(torch.zeros(2), torch.tensor([0.5, 1.0]))
        tensor([ 0.0000, -0.2983])
    """
    scores = logits.sigmoid()
    difference = scores - quality
    size = difference.abs()
    if beta == 0:
        return difference
    slope = scores * (1 - scores) * quality_entropy(logits, quality)
    # At d = 0 the loss has a kink for beta <= 1, with subgradient sign(0) = 0.
    return size.pow(beta) * difference + beta * power(size, beta - 1) * difference.sign() * slope


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution Focal Loss, eq. 6: cross entropy against the two bins around a distance.

    Args:
        logits: ``(..., num_bins)``.
        distances: ``(...)`` in strides, clamped to [0, num_bins - 1].

    Returns:
        ``(...)`` loss per edge.

    Example:
        >>> distribution_focal_loss(torch.zeros(1, 8), torch.tensor([2.25]))  # log 8
        tensor([2.0794])
    """
    target = two_bin_target(distances, logits.shape[-1])
    log_probabilities = logits.log_softmax(-1)
    left = log_probabilities.gather(-1, target.left.unsqueeze(-1)).squeeze(-1)
    right = log_probabilities.gather(-1, target.left.unsqueeze(-1) + 1).squeeze(-1)
    return -(target.left_weight * left + target.right_weight * right)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of softened distributions: ``T^2 * KL(p || q)``, p the teacher's softmax at T.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: the factor keeps the scale
    of the gradients as the temperature grows. On the bins of an edge this is localization
    distillation (Zheng et al., CVPR 2022).

    Args:
        logits: ``(..., n)`` student logits.
        teacher: ``(..., n)`` teacher logits; no gradient.
        temperature: T, above 0.

    Returns:
        ``(...)``, the sum over n; 0 where both distributions are equal.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> distillation_loss(logits, logits, temperature=10)
        tensor([0.])
    """
    ours = (full_precision(logits) / temperature).log_softmax(-1)
    theirs = (full_precision(teacher.detach()) / temperature).log_softmax(-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)


# --- Varifocal Loss -------------------------------------------------------------------------------


def varifocal_loss(
    logits: Tensor,
    quality: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
) -> Tensor:
    """Varifocal Loss (VarifocalNet, eq. 2): focal for negatives only.

    Args:
        logits: Any shape.
        quality: Target q in [0, 1], broadcasts with logits; 0 for a negative.
        alpha: Weight of the negatives.
        gamma: Focusing parameter of negatives, at least 0.
        iou_weighted: Weight positives by their quality, as in the paper.

    Returns:
        Loss per element: ``q * BCE(s, q)`` where q > 0, otherwise ``alpha * s^gamma * softplus``.

    Example:
        >>> varifocal_loss(torch.zeros(2), torch.tensor([0.0, 0.8]))
        tensor([0.1300, 0.5545])
    """
    weight = quality if iou_weighted else torch.ones_like(quality)
    positive = weight * quality_entropy(logits, quality)
    negative = alpha * quality_focal_loss(logits, torch.zeros_like(quality), gamma)
    return positive.where(quality > 0, negative)


def varifocal_gradient(
    logits: Tensor,
    quality: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
) -> Tensor:
    """Derivative of :func:`varifocal_loss` with respect to the logits (same arguments).

    Example:
        >>> varifocal_gradient(torch.zeros(1), torch.tensor([0.5]))
        tensor([0.])
    """
    weight = quality if iou_weighted else torch.ones_like(quality)
    positive = weight * (logits.sigmoid() - quality)
    negative = alpha * quality_focal_gradient(logits, torch.zeros_like(quality), gamma)
    return positive.where(quality > 0, negative)


# --- Softmax focal losses, their gammas, and the inverse focal loss ------------------------------


def true_log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Log softmax probability of the true class.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64 in 0..K-1.

    Returns:
        ``(N,)``, at most 0.

    Example:
        >>> true_log_probability(torch.zeros(1, 4), torch.tensor([2])).exp()
        tensor([0.2500])
    """
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def focal_loss(
    log_probability: Tensor, gamma: float | Tensor, detach_weight: bool = False
) -> Tensor:
    """``-(1 - p)^gamma * log p``.

    Args:
        log_probability: Log probability of the true class, any shape.
        gamma: At least 0, broadcasts; 0 is cross entropy.
        detach_weight: Block the gradient through the weight. This moves the optimum: at gamma 3 and
            a true probability of .8, it is .586 with the gradient and .594 without.

    Returns:
        Loss per element.

    Example:
        >>> focal_loss(torch.tensor([0.5]).log(), gamma=2)  # .25 log 2
        tensor([0.1733])
    """
    weight = power(-log_probability.expm1(), gamma)
    return -(weight.detach() if detach_weight else weight) * log_probability


def gamma_by_sample(
    probability: Tensor, gammas: Sequence[float] = (5, 3), thresholds: Sequence[float] = (0.2,)
) -> Tensor:
    """Gamma per sample by the probability of its true class (FLSD-53 by default).

    Args:
        probability: Any shape, in [0, 1]; no gradient.
        gammas: One more than thresholds.
        thresholds: Ascending; a probability equal to a threshold counts as above it.

    Returns:
        Gammas of the same shape.

    Example:
        >>> gamma_by_sample(torch.tensor([0.1, 0.6]))
        tensor([5., 3.])
    """
    edges = torch.as_tensor(thresholds, dtype=probability.dtype, device=probability.device)
    values = torch.as_tensor(gammas, dtype=probability.dtype, device=probability.device)
    return values[torch.bucketize(probability.contiguous(), edges, right=True)]


def automatic_gamma(p0: float) -> float:
    """Gamma at which focal loss and cross entropy have equal gradients at p0.

    Below p0 the focal gradient is larger. The equation ``(1 - p)^g - g p (1 - p)^(g - 1) log p =
    1`` is solved by branch -1 of Lambert's W (Mukhoti et al., appendix). Gamma grows without bound
    as p0 approaches 0: 4.85 at .2, 14.9 at .1, 253.7 at .01.

    Args:
        p0: Probability in (0, 1); from .5 on gamma is 0 (cross entropy).

    Raises:
        ValueError: If p0 is outside (0, 1).

    Example:
        >>> round(automatic_gamma(0.25), 6)
        3.070227
    """
    from scipy.special import lambertw  # the only import besides torch

    if not 0 < p0 < 1:
        raise ValueError(f'p0 must be a probability in (0, 1), not {p0!r}')
    if p0 >= 0.5:
        return 0.0
    a = (1 - p0) / (p0 * math.log(p0))
    b = math.log1p(-p0)
    y = (1 - p0) ** (1 - a) / (p0 * math.log(p0)) * b
    # Near p0 = .5 the argument approaches the branch point; 1e-12 keeps rounding from crossing it.
    return float(a + lambertw(-y + 1e-12, k=-1).real / b)


def focal_to_posterior(scores: Tensor, gamma: float) -> Tensor:
    """Probability of a positive for which sigmoid focal loss is minimal at a given score.

    Focal loss without alpha, with a gradient through its weight, is not a proper loss: its optimum
    lies closer to .5 than the true probability. This inverts the shift in closed form.

    Args:
        scores: Any shape, in [0, 1].
        gamma: At least 0.

    Returns:
        ``h(s) / (h(s) + h(1 - s))`` with ``h(s) = s / ((1-s)^g - g (1-s)^(g-1) s log s)``.

    Example:
        >>> focal_to_posterior(torch.tensor([0.62661]), gamma=2)
        tensor([0.8000])
    """

    def slope(score: Tensor) -> Tensor:
        # The divisor of h in a form that is finite at both ends.
        rest = 1 - score
        inside = (rest > 0) & (score > 0)
        ratio = torch.where(inside, score, 0.5)
        ratio = -ratio.log() / (1 - ratio)  # -log(s) / (1 - s), which is 1 at s = 1
        ratio = torch.where(inside, ratio, (score > 0).to(score.dtype))
        return power(rest, gamma) * (1 + gamma * score * ratio)

    right, wrong = scores * slope(1 - scores), (1 - scores) * slope(scores)
    return right / (right + wrong)


# The inverse focal loss is monotone in p up to this gamma: the minimum of (1 + p) / (-p log p) over
# p, at p = .278.
MAX_INVERSE_GAMMA = 3.591121476668622


def inverse_focal_loss(
    log_probability: Tensor, gamma: float, detach_weight: bool = False
) -> Tensor:
    """``-(1 + p)^gamma * log p``, which rewards confidence; meant for post-hoc calibration.

    Args:
        log_probability: Log probability of the true class, any shape.
        gamma: See :func:`check_inverse_gamma`; 0 is cross entropy.
        detach_weight: Block the gradient through the weight; the optimum is then unique.

    Returns:
        Loss per element.

    Example:
        >>> inverse_focal_loss(torch.tensor([0.5]).log(), gamma=2)  # 2.25 log 2
        tensor([1.5596])
    """
    weight = (1 + log_probability.exp()).pow(gamma)
    return -(weight.detach() if detach_weight else weight) * log_probability


def quality_inverse_focal(
    logits: Tensor, quality: Tensor, gamma: float, detach_weight: bool = False
) -> Tensor:
    """``(2 - |y - s|)^gamma * BCE(s, y)``, the inverse focal loss for quality targets.

    Unlike Quality Focal Loss, it weights each easy negative by about 2^gamma.

    Args:
        logits: Any shape.
        quality: Target in [0, 1], broadcasts with logits.
        gamma: See :func:`check_inverse_gamma`.
        detach_weight: Block the gradient through the weight.

    Returns:
        Loss per element.

    Example:
        >>> quality_inverse_focal(torch.zeros(1), torch.tensor([0.5]), gamma=1)  # 2 log 2
        tensor([1.3863])
    """
    weight = (2 - (quality - logits.sigmoid()).abs()).pow(gamma)
    return (weight.detach() if detach_weight else weight) * quality_entropy(logits, quality)


def check_inverse_gamma(gamma: float, detach_weight: bool) -> None:
    """Reject a gamma at which the inverse focal loss is not monotone in p.

    Raises:
        ValueError: If gamma is negative, or above ``MAX_INVERSE_GAMMA`` without ``detach_weight``.

    Example:
        >>> check_inverse_gamma(1.0, detach_weight=False)
    """
    if not gamma >= 0:
        raise ValueError(f'gamma of the inverse focal loss must be at least 0, not {gamma!r}')
    if gamma > MAX_INVERSE_GAMMA and not detach_weight:
        raise ValueError(
            f'the inverse focal loss rewards wrong scores at gamma {gamma!r}, above '
            f'{MAX_INVERSE_GAMMA:.4f}: use a smaller gamma or set detach_weight=True'
        )


# --- Other losses related to calibration ----------------------------------------------------------


def brier_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance between softmax and one-hot label, summed over classes.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64 in 0..K-1.

    Returns:
        ``(N,)`` in [0, 2].

    Example:
        >>> brier_loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.5000])
    """
    target = F.one_hot(labels, logits.shape[-1])
    return (target - logits.softmax(-1)).square().sum(-1)


def quality_brier(logits: Tensor, quality: Tensor) -> Tensor:
    """Element-wise ``(y - s)^2`` with ``s = sigmoid(logit)``; y broadcasts with logits.

    Example:
        >>> quality_brier(torch.zeros(1), torch.tensor([0.8]))
        tensor([0.0900])
    """
    return (quality - logits.sigmoid()).square()


def label_smoothing_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy against ``(1 - e) * onehot + e / K``.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64 in 0..K-1.
        smoothing: e in [0, 1).

    Returns:
        ``(N,)``.

    Example:
        >>> label_smoothing_loss(torch.zeros(1, 2), torch.tensor([0]), smoothing=0.1)  # log 2
        tensor([0.6931])
    """
    logs = logits.log_softmax(-1)
    true = logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -(1 - smoothing) * true - smoothing * logs.mean(-1)


def smooth_quality(quality: Tensor, positive: Tensor, smoothing: float) -> Tensor:
    """Smoothed targets ``y (1 - e) + e / 2`` at the positives only.

    Smoothing the far more numerous negatives would dominate the loss.

    Args:
        quality: Targets in [0, 1], any shape.
        positive: Boolean mask of the same shape.
        smoothing: e in [0, 1).

    Example:
        >>> smooth_quality(torch.tensor([1.0, 0.0]), torch.tensor([True, False]), 0.1)
        tensor([0.9500, 0.0000])
    """
    return torch.where(positive, quality * (1 - smoothing) + smoothing / 2, quality)


# --- Kernel calibration errors --------------------------------------------------------------------

KERNEL_WIDTH = 0.4  # of exp(-|a - b| / width)
MAX_PAIRED = 1024  # most samples of a kernel error: memory grows with their square


def mmce(confidence: Tensor, correct: Tensor, width: float = KERNEL_WIDTH) -> Tensor:
    """Squared maximum mean calibration error: ``sum_ij (r_i-c_i)(r_j-c_j) k(c_i, c_j) / N^2``.

    Args:
        confidence: c ``(N,)`` in [0, 1].
        correct: r ``(N,)`` in [0, 1]: correctness, binary or graded.
        width: Width of the kernel ``exp(-|a - b| / width)``.

    Returns:
        Scalar, at least 0; 0 for no samples.

    Example:
        >>> mmce(torch.tensor([0.9, 0.6]), torch.tensor([True, False]))
        tensor(0.0783)
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
    """MMCE with equal weight for correct and incorrect samples.

    ``sqrt(mean_RR (1-c)(1-c')k + mean_WW c c' k - 2 mean_RW (1-c) c' k + 1e-10)`` over pairs of
    correct (R) and incorrect (W) samples.

    Args:
        confidence: c ``(N,)`` in [0, 1].
        correct: ``(N,)`` bool.
        width: Width of the kernel.
        as_published: Divide each mean by its number of pairs again, as in the published code, which
            makes the term negligible.

    Returns:
        Scalar; 0 if all samples are correct or all are incorrect.

    Example:
        >>> weighted_mmce(torch.tensor([0.9, 0.6]), torch.tensor([True, True]))
        tensor(0.)
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
    # Outside the mixed case the root gets a harmless value, so its derivative is not NaN.
    root = total.clamp(min=0).where(mixed, total.new_ones(())).sqrt()
    return root.where(mixed, root.new_zeros(()))


def paired_subset(scores: Tensor, positive: Tensor, limit: int = MAX_PAIRED) -> Tensor:
    """Positives and equally many of the highest-scored negatives, each by descending score.

    Args:
        scores: ``(M,)`` in [0, 1].
        positive: ``(M,)`` bool.
        limit: Maximum number of samples, even.

    Returns:
        Indices ``(S,)``, S at most ``limit``.

    Example:
        >>> paired_subset(torch.tensor([0.1, 0.9, 0.4]), torch.tensor([True, False, False]))
        tensor([0, 1])
    """
    scores, number = scores.detach(), int(positive.sum())
    wanted = min(number, limit // 2)
    best = scores.masked_fill(~positive, -1).topk(wanted).indices
    others = scores.masked_fill(positive, -1).topk(min(wanted, len(scores) - number)).indices
    return torch.cat([best, others])


def _kernel(confidence: Tensor, width: float) -> Tensor:
    return (-(confidence[:, None] - confidence).abs() / width).exp()
