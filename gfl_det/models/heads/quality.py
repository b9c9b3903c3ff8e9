"""From the distributions of a cell's edges to its quality: pure functions on maps.

Source: Li et al., "Generalized Focal Loss V2", CVPR 2021, on the distribution-guided quality
predictor: a sharp distribution has a large top value, so a few of its values tell how well its edge
is located.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl_det.ops.distribution import full_precision


def edge_statistics(edges: Tensor, num_bins: int, count: int, with_mean: bool) -> Tensor:
    """The largest probabilities of each edge's distribution, and their mean.

    The mean is that of the largest ones: the mean of all probabilities is the same for every
    distribution.

    Args:
        edges: logits ``(B, 4 * num_bins, H, W)``.
        num_bins: bins of an edge's distribution.
        count: probabilities taken of each edge, k in the paper, at most ``num_bins``.
        with_mean: add the mean.

    Returns:
        ``(B, 4 * (count + with_mean), H, W)`` in [0, 1], edge by edge: the probabilities in
        descending order, then their mean.
    """
    probabilities = full_precision(edges).unflatten(1, (4, num_bins)).softmax(2)
    largest = probabilities.topk(count, dim=2).values
    if with_mean:
        largest = torch.cat([largest, largest.mean(2, keepdim=True)], dim=2)
    return largest.flatten(1, 2)


def joint_logits(logits: Tensor, quality: Tensor) -> Tensor:
    """The logit of a product of two probabilities, from their logits.

    GFLv2's score is class times quality, J = C * I in the paper. The odds of ``p = sigmoid(a) *
    sigmoid(b)`` are ``1 / (e^-a + e^-b + e^-(a+b))``, so ``logit(p) = b - softplus(softplus(b) -
    a)``: no probability is rounded to 0 or 1 on the way, and a loss on logits stays exact where one
    on the product would take the logarithm of 0.

    Args:
        logits: a, ``(B, C, H, W)``.
        quality: b, broadcasts with it.

    Returns:
        Of the broadcast shape, float32 at least.
    """
    quality = full_precision(quality)
    return quality - F.softplus(F.softplus(quality) - full_precision(logits))
