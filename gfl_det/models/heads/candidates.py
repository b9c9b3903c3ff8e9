"""The first step of prediction: which pairs of cell and class may become detections.

MMDetection takes the sigmoid of every logit. Here the cells are found by the largest logit of each,
and all classes are read in those cells alone; all images of a batch go through together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from gfl_det.ops.distribution import full_precision

# Logits this little below the threshold are looked at too: a rounded sigmoid decides.
THRESHOLD_SLACK = 1e-3


class Candidates(NamedTuple):
    """Pairs of cell and class that may become detections of a batch."""

    scores: Tensor  # (N,) in [0, 1]
    labels: Tensor  # (N,) int64
    image: Tensor  # (N,) int64, index in the batch
    level: Tensor  # (N,) int64
    cell: Tensor  # (N,) int64, row * width + column

    def take(self, index: Tensor | slice) -> Candidates:
        """The candidates at an index."""
        return Candidates(*(field[index] for field in self))


def find_candidates(maps: Sequence[Tensor], config: ConfigDict) -> Candidates:
    """The best pairs of cell and class on each level of each image.

    The n best pairs lie in the n cells with the largest peaks, so all classes are read there only.

    Args:
        maps: class logits, per level ``(B, C, H, W)``.
        config: test config with ``score_thr``, pairs above it count, and ``nms_pre``, the
            pairs of a level and image at most (not positive: all).

    Returns:
        The pairs, level by level, in order of image, cell, class.
    """
    threshold, count = config.score_thr, config.get('nms_pre', -1)
    images, levels = maps[0].shape[0], len(maps)
    places = [_cells(level, _lowest_logit(threshold), count) for level in maps]
    rows = [level.flatten(2)[image, :, cell] for level, (image, cell) in zip(maps, places)]
    sizes = torch.tensor([len(each) for each in rows]).to(maps[0].device)
    level = torch.arange(levels, device=sizes.device).repeat_interleave(sizes)
    image, cell = (torch.cat(each) for each in zip(*places))
    scores = full_precision(torch.cat(rows)).sigmoid()
    row, label = (scores > threshold).nonzero().unbind(1)
    values = scores[row, label]
    found = Candidates(values, label, image[row], level[row], cell[row])
    if 0 < count < len(row):
        kept = _best_of_groups(found.level * images + found.image, values, levels * images, count)
        if kept is not None:
            found = found.take(kept)
    return found


def _lowest_logit(threshold: float) -> float:
    """A logit below which no score exceeds a threshold."""
    if threshold <= 0:
        return -math.inf
    if threshold >= 1:
        return math.inf
    return math.log(threshold / (1 - threshold)) - THRESHOLD_SLACK


def _cells(maps: Tensor, lowest: float, count: int) -> tuple[Tensor, Tensor]:
    """Image and cell of the ``count`` cells of each image with the largest peaks above a logit."""
    peaks = maps.amax(1).flatten(1)
    image, cell = (peaks > lowest).nonzero().unbind(1)
    if 0 < count < len(cell):
        kept = _best_of_groups(image, peaks[image, cell], len(peaks), count)
        if kept is not None:
            return image[kept], cell[kept]
    return image, cell


def _best_of_groups(group: Tensor, values: Tensor, groups: int, count: int) -> Tensor | None:
    """Where the ``count`` largest values of each group are, in their order.

    Args:
        group: ``(N,)`` int64, ascending.
        values: ``(N,)``; of equal values the first are taken.
        groups: number of groups.
        count: of values of a group.

    Returns:
        Indices, or None where no group has more.
    """
    sizes = torch.bincount(group, minlength=groups).tolist()
    if max(sizes) <= count:
        return None
    kept, first = [], 0
    for size in sizes:
        kept.append(_best(values[first : first + size], count) + first)
        first += size
    return torch.cat(kept)


def _best(values: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the largest values ``(N,)``; of equal values the first."""
    if len(values) <= count:
        return torch.arange(len(values), device=values.device)
    weakest = values.topk(count).values[-1]
    above, equal = values > weakest, values == weakest
    spare = count - above.sum()
    return (above | (equal & (equal.cumsum(0) <= spare))).nonzero().squeeze(1)
