"""Slow, obvious versions of what the package computes fast: one loop for each word of the rule."""

from __future__ import annotations

import math

import numpy as np
import torch

STRIDES = (8, 16, 32, 64, 128)


def lattice_priors(sizes, strides=STRIDES, scale=8):
    """Priors of all levels as a list of xyxy boxes, row by row."""
    priors = []
    for (rows, columns), stride in zip(sizes, strides):
        half = scale * stride / 2
        for row in range(rows):
            for column in range(columns):
                x, y = column * stride, row * stride
                priors.append((x - half, y - half, x + half, y + half))
    return np.array(priors, dtype=np.float64).reshape(-1, 4)


def pair_iou(a, b):
    """IoU of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / max(union, 1e-6)


def atss(priors, counts, gts, k=9):
    """ATSS as algorithm 1 of the paper says it; returns for each prior its gt box or -1."""
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in priors]
    best_iou = [-1.0] * len(priors)
    best_gt = [-1] * len(priors)
    for index, gt in enumerate(gts):
        centre = (gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2
        candidates = []
        first = 0
        for count in counts:
            level = range(first, first + count)

            distance = {prior: math.dist(centres[prior], centre) for prior in level}
            candidates += sorted(level, key=distance.__getitem__)[:k]
            first += count
        ious = [pair_iou(priors[prior], gt) for prior in candidates]
        if len(ious) < 2:
            continue
        threshold = np.mean(ious) + np.std(ious, ddof=1)
        for prior, value in zip(candidates, ious):
            cx, cy = centres[prior]
            inside = min(cx - gt[0], cy - gt[1], gt[2] - cx, gt[3] - cy)
            if value >= threshold and inside > 0.01 and value > best_iou[prior]:
                best_iou[prior], best_gt[prior] = value, index
    return best_gt


def quality_focal(logit, quality, beta=2.0):
    """QFL of one logit, in plain Python."""
    score = 1 / (1 + math.exp(-logit))
    entropy = -(quality * math.log(score) + (1 - quality) * math.log(1 - score))
    return abs(quality - score) ** beta * entropy


def distribution_focal(logits, distance):
    """DFL of one edge, in plain Python."""
    exps = [math.exp(value) for value in logits]
    left = min(int(distance), len(logits) - 2)
    share = distance - left
    return -(
        (1 - share) * math.log(exps[left] / sum(exps))
        + share * math.log(exps[left + 1] / sum(exps))
    )


def random_gts(count, height, width, generator, smallest=2.5, spread=4.5):
    """Boxes of log-uniform sides, cut within a pixel of the image border.

    Cut at the border itself, many centres would lie midway between priors, and which of two equally
    near priors comes first is an accident of mmdet's ``topk``.
    """
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sides = torch.exp(torch.rand(count, 2, generator=generator) * spread + math.log(smallest))
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    inset = torch.rand(count, 4, generator=generator)
    limit = torch.tensor([width, height, width, height]) - inset
    return torch.minimum(torch.maximum(boxes, inset), limit)
