"""The focal family: pure, unreduced equations of losses that bear on calibration.

Two forms of each. Of a softmax: functions of ``log p``, the logarithm of the probability given to
the truth. Of a detector's sigmoid: functions of a logit and a target y in [0, 1], in which
``q = 1 - |y - s|`` takes the place of p; for y = 0 or 1 both are the same.

Sources: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; Mukhoti et al.,
"Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020 (gamma by sample, and gamma of a
chosen probability); Wang, Feng and Zhang, "Rethinking Calibration of Deep Neural Networks: Do Not
Be Afraid of Overconfidence", NeurIPS 2021 (inverse focal loss); Li et al., NeurIPS 2020 (quality).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Beyond it the inverse focal loss falls somewhere as the truth gets less likely: this is the least
# value over p of (1 + p) / (-p log p), at p = .278.
MAX_INVERSE_GAMMA = 3.591121476668622


def power(base: Tensor, exponent: float | Tensor) -> Tensor:
    """``base ** exponent`` whose derivative at a base of 0 is 0 and never infinite or NaN.

    Args:
        base: at least 0.
        exponent: at least 0, broadcasts with base.
    """
    positive = base > 0
    inside = base.where(positive, torch.ones_like(base)).pow(exponent)
    at_zero = torch.as_tensor(exponent, device=base.device) == 0
    return inside.where(positive, at_zero.to(inside.dtype))


def true_log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Logarithm of the softmax probability given to the truth.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64 in 0..K-1.

    Returns:
        ``(N,)``, at most 0.
    """
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def focal_loss(
    log_probability: Tensor, gamma: float | Tensor, detach_weight: bool = False
) -> Tensor:
    """``-(1 - p)^gamma * log p``.

    Args:
        log_probability: of the truth, any shape.
        gamma: at least 0, broadcasts; 0 is cross entropy.
        detach_weight: let no gradient through the weight. That is another loss: of gamma 3 and a
            chance of .8 the optimum is .586 with, and .594 without.

    Returns:
        Loss of each element.
    """
    weight = power(-log_probability.expm1(), gamma)
    return -(weight.detach() if detach_weight else weight) * log_probability


def inverse_focal_loss(
    log_probability: Tensor, gamma: float, detach_weight: bool = False
) -> Tensor:
    """``-(1 + p)^gamma * log p``: it rewards confidence, and is made for calibration afterwards.

    Args:
        log_probability: of the truth, any shape.
        gamma: see :func:`check_inverse_gamma`; 0 is cross entropy.
        detach_weight: let no gradient through the weight; the optimum is then unique.

    Returns:
        Loss of each element.
    """
    weight = (1 + log_probability.exp()).pow(gamma)
    return -(weight.detach() if detach_weight else weight) * log_probability


def check_inverse_gamma(gamma: float, detach_weight: bool) -> None:
    """Refuse a gamma at which the inverse focal loss is not monotone in p.

    Raises:
        ValueError: gamma is negative, or above `MAX_INVERSE_GAMMA` with a gradient in the weight.
    """
    if not gamma >= 0:
        raise ValueError(f'gamma of the inverse focal loss is at least 0, not {gamma!r}')
    if gamma > MAX_INVERSE_GAMMA and not detach_weight:
        raise ValueError(
            f'the inverse focal loss rewards wrong scores at gamma {gamma!r}, above '
            f'{MAX_INVERSE_GAMMA:.4f}: take a smaller one or detach_weight=True'
        )


def gamma_by_sample(
    probability: Tensor, gammas: Sequence[float] = (5, 3), thresholds: Sequence[float] = (0.2,)
) -> Tensor:
    """Gamma of each sample by the probability it gives to the truth (FLSD-53 by default).

    Args:
        probability: any shape, in [0, 1]; gets no gradient.
        gammas: one more than thresholds.
        thresholds: ascending; a probability of exactly a threshold lies above it.

    Returns:
        The gammas, of the same shape.
    """
    edges = torch.as_tensor(thresholds, dtype=probability.dtype, device=probability.device)
    values = torch.as_tensor(gammas, dtype=probability.dtype, device=probability.device)
    return values[torch.bucketize(probability.contiguous(), edges, right=True)]


def automatic_gamma(p0: float) -> float:
    """The gamma whose focal loss has the gradient of cross entropy at p0: larger below it.

    It solves ``(1 - p)^g - g p (1 - p)^(g - 1) log p = 1`` by the branch -1 of Lambert's W (Mukhoti
    et al., appendix). It grows without bound as p0 goes to 0: 4.85 at .2, 14.9 at .1, 253.7 at .01.

    Args:
        p0: in (0, 1); from .5 on the answer is 0, cross entropy.

    Raises:
        ValueError: p0 is out of range.
    """
    from scipy.special import lambertw  # with everything else of torch alone

    if not 0 < p0 < 1:
        raise ValueError(f'p0 is a probability in (0, 1), not {p0!r}')
    if p0 >= 0.5:
        return 0.0
    a = (1 - p0) / (p0 * math.log(p0))
    b = math.log1p(-p0)
    y = (1 - p0) ** (1 - a) / (p0 * math.log(p0)) * b
    # Towards p0 = .5 the argument nears the branch point; 1e-12 keeps rounding from passing it.
    return float(a + lambertw(-y + 1e-12, k=-1).real / b)


def focal_to_posterior(scores: Tensor, gamma: float) -> Tensor:
    """The probability at which sigmoid focal loss is least at a score: what the score means.

    Focal loss without alpha, and with a gradient in its weight, is no proper loss: its optimum lies
    nearer to .5 than the truth. This undoes it in closed form.

    Args:
        scores: any shape, in [0, 1].
        gamma: at least 0.

    Returns:
        ``h(s) / (h(s) + h(1 - s))`` with ``h(s) = s / ((1-s)^g - g (1-s)^(g-1) s log s)``.
    """

    def slope(score: Tensor) -> Tensor:
        # The divisor of h, written so that it is finite at both ends.
        rest = 1 - score
        inside = (rest > 0) & (score > 0)
        ratio = torch.where(inside, score, 0.5)
        ratio = -ratio.log() / (1 - ratio)  # -log(s) / (1 - s), which is 1 at s = 1
        ratio = torch.where(inside, ratio, (score > 0).to(score.dtype))
        return power(rest, gamma) * (1 + gamma * score * ratio)

    right, wrong = scores * slope(1 - scores), (1 - scores) * slope(scores)
    return right / (right + wrong)


def quality_entropy(logits: Tensor, quality: Tensor) -> Tensor:
    """Binary cross entropy of sigmoid scores against targets in [0, 1], of each element."""
    return F.softplus(logits) - quality * logits


def quality_focal(
    logits: Tensor, quality: Tensor, gamma: float | Tensor, detach_weight: bool = False
) -> Tensor:
    """Quality Focal Loss ``|y - s|^gamma * BCE(s, y)``, with gamma for each element if need be.

    Args:
        logits: any shape.
        quality: target in [0, 1], broadcasts with logits.
        gamma: at least 0, broadcasts.
        detach_weight: let no gradient through the weight.

    Returns:
        Loss of each element; for targets of 0 and 1 :func:`focal_loss`.
    """
    weight = power((quality - logits.sigmoid()).abs(), gamma)
    return (weight.detach() if detach_weight else weight) * quality_entropy(logits, quality)


def quality_inverse_focal(
    logits: Tensor, quality: Tensor, gamma: float, detach_weight: bool = False
) -> Tensor:
    """``(2 - |y - s|)^gamma * BCE(s, y)``, the inverse focal loss of a quality.

    Unlike Quality Focal Loss it weighs each easy negative by about 2^gamma.

    Args:
        logits: any shape.
        quality: target in [0, 1], broadcasts with logits.
        gamma: see :func:`check_inverse_gamma`.
        detach_weight: let no gradient through the weight.

    Returns:
        Loss of each element.
    """
    weight = (2 - (quality - logits.sigmoid()).abs()).pow(gamma)
    return (weight.detach() if detach_weight else weight) * quality_entropy(logits, quality)
