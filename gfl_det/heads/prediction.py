"""From maps of logits to detections: filter first, decode few, suppress in order of score.

MMDetection takes the sigmoid of every logit and integrates every distribution before it drops
nearly all of them. Here the best cells are found by the largest logit of each, only the edges of
the best few are decoded, and suppression stops as soon as ``max_per_img`` boxes are kept: greedy
NMS decides boxes in order of score, so those are final. The results are those of the full
computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmcv.ops import batched_nms, nms
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from .. import distribution
from ..boxes import distances_to_boxes

# Candidates the first round of NMS looks at; each further round looks at four times as many.
FIRST_ROUND = 256
# Logits this little below the threshold are looked at too: a rounded sigmoid decides.
THRESHOLD_SLACK = 1e-3
# mmcv's default of split_thr.
SPLIT_THRESHOLD = 10000


class Candidates(NamedTuple):
    """Pairs of cell and class that may become detections of one image."""

    scores: Tensor  # (N,) in [0, 1]
    labels: Tensor  # (N,) int64
    level: Tensor  # (N,) int64
    cell: Tensor  # (N,) int64, row * width + column

    def take(self, index: Tensor | slice) -> Candidates:
        """The candidates at an index."""
        return Candidates(*(field[index] for field in self))


def image_candidates(
    logits: Sequence[Tensor], peaks: Sequence[Tensor], config: ConfigDict
) -> Candidates:
    """The best pairs of cell and class on each level of one image.

    The n best pairs lie in the n cells with the largest peaks, so all classes are read there only.

    Args:
        logits: per level ``(C, H * W)``.
        peaks: per level ``(H * W,)``, the largest logit of each cell.
        config: test config with ``score_thr``, pairs above it count, and ``nms_pre``, the
            pairs of a level at most (not positive: all).

    Returns:
        The pairs, level by level, in order of cell, then class.
    """
    threshold, count = config.score_thr, config.get('nms_pre', -1)
    lowest = -math.inf if threshold <= 0 else math.inf
    if 0 < threshold < 1:
        lowest = math.log(threshold / (1 - threshold)) - THRESHOLD_SLACK
    cells = [(each > lowest).nonzero().squeeze(1) for each in peaks]
    if count > 0:
        cells = [_best(each, peak[each], count) for each, peak in zip(cells, peaks)]
    sizes = torch.tensor([len(each) for each in cells], device=peaks[0].device)
    level = torch.arange(len(cells), device=sizes.device).repeat_interleave(sizes)
    rows = [each.index_select(1, chosen).T for each, chosen in zip(logits, cells)]
    scores = torch.cat(rows).sigmoid()
    row, label = (scores > threshold).nonzero().unbind(1)
    values = distribution.full_precision(scores[row, label])
    found = Candidates(values, label, level[row], torch.cat(cells)[row])
    if count > 0 and len(row) > count:
        numbers = torch.arange(len(row), device=row.device)
        groups = numbers.split(torch.bincount(found.level, minlength=len(cells)).tolist())
        kept = torch.cat([_best(group, found.scores[group], count) for group in groups])
        found = found.take(kept)
    return found


def _best(items: Tensor, values: Tensor, count: int) -> Tensor:
    """The items ``(N,)`` with the largest values, in their order; of equal values the first."""
    if len(items) <= count:
        return items
    weakest = values.topk(count).values[-1]
    above, equal = values > weakest, values == weakest
    spare = count - above.sum()
    return items[above | (equal & (equal.cumsum(0) <= spare))]


class Frame(NamedTuple):
    """The image that boxes are cut at and refer to."""

    limit: tuple[float, float]  # width and height of the network's input, px; infinite: no cut
    scale: tuple[float, float]  # along x and y, from there to the image that boxes refer to
    smallest: float  # boxes with a side not above it are dropped, px; negative: none are


def image_frame(meta: dict, config: ConfigDict, rescale: bool, clip: bool) -> Frame:
    """Read an image's frame from its meta information and the test config.

    Args:
        meta: ``img_shape`` and, to rescale, ``scale_factor`` (w, h).
        config: with ``min_bbox_size``.
        rescale: boxes refer to the original image.
        clip: boxes are cut at the image's border.

    Returns:
        The frame.
    """
    height, width = meta['img_shape'][:2]
    scale = (1.0, 1.0)
    if rescale:
        scale = (1 / meta['scale_factor'][0], 1 / meta['scale_factor'][1])
    limit = (float(width), float(height)) if clip else (math.inf, math.inf)
    return Frame(limit, scale, config.get('min_bbox_size', -1))


class Decoder(NamedTuple):
    """What turns a candidate's edge logits into a box of one image."""

    edges: Sequence[Tensor]  # per level (4 * num_bins, H * W) logits
    centres: Sequence[Tensor]  # per level (H * W, 2) px
    stride: Tensor  # (L,) px
    frame: Frame

    def logits(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Edge logits ``(N, 4, num_bins)`` and centres ``(N, 2)`` of candidates."""
        channels = self.edges[0].shape[0]
        logits = self.edges[0].new_empty(len(candidates.cell), channels)
        points = self.centres[0].new_empty(len(candidates.cell), 2)
        for level, (edges, centres) in enumerate(zip(self.edges, self.centres)):
            rows = (candidates.level == level).nonzero().squeeze(1)
            cells = candidates.cell[rows]
            logits[rows] = edges.index_select(1, cells).T
            points[rows] = centres[cells]
        return logits.unflatten(1, (4, -1)), points

    def boxes(self, candidates: Candidates) -> Tensor:
        """Boxes ``(N, 4)`` xyxy, clipped and rescaled."""
        logits, points = self.logits(candidates)
        distances = distribution.mean(logits) * self.stride[candidates.level][:, None]
        boxes = distances_to_boxes(points, distances)
        if math.isfinite(self.frame.limit[0]):
            boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor(self.frame.limit * 2))
        return boxes * boxes.new_tensor(self.frame.scale * 2)

    def edge_std(self, candidates: Candidates) -> Tensor:
        """Standard deviations ``(N, 4)`` of the edges, ltrb, rescaled."""
        spread = distribution.std(self.logits(candidates)[0])
        scale = spread.new_tensor(self.frame.scale * 2)
        return spread * self.stride[candidates.level][:, None] * scale

    def is_large(self, boxes: Tensor) -> Tensor:
        """Which boxes ``(N,)`` have both sides above the smallest."""
        if self.frame.smallest < 0:
            return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        return (boxes[:, 2:] - boxes[:, :2] > self.frame.smallest).all(1)

    def farthest(self, candidates: Candidates) -> Tensor:
        """Coordinates ``(N,)`` that no box of a candidate exceeds, known without decoding it."""
        last_bin = self.edges[0].shape[0] // 4 - 1
        points = torch.cat(list(self.centres))
        first = torch.tensor([0] + [len(level) for level in self.centres[:-1]]).cumsum(0)
        points = points[first.to(points.device)[candidates.level] + candidates.cell]
        reach = points + last_bin * self.stride[candidates.level][:, None]
        reach = torch.minimum(reach, reach.new_tensor(self.frame.limit))
        return (reach * reach.new_tensor(self.frame.scale)).amax(1)


def is_plain_nms(config: ConfigDict | None, count: int) -> bool:
    """Whether an NMS config asks, for so many boxes, for greedy suppression that can stop early.

    Soft NMS cannot, and from ``split_thr`` boxes on mmcv suppresses class by class.
    """
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if config is None or config.get('type', 'nms') != 'nms' or not known >= set(config):
        return False
    return 0 < count < config.get('split_thr', SPLIT_THRESHOLD)


def detect(
    decoder: Decoder, candidates: Candidates, config: ConfigDict, with_nms: bool
) -> InstanceData:
    """Decode candidates, suppress, and keep the best.

    Args:
        decoder: of the image.
        candidates: N of all levels.
        config: test config with ``nms`` (None: sort only), ``max_per_img`` (not positive: all) and
            ``with_uncertainty``.
        with_nms: False gives all candidates.

    Returns:
        ``bboxes``, ``scores``, ``labels`` and on request ``edge_std``, by descending score.
    """
    candidates = candidates.take(candidates.scores.sort(descending=True, stable=True).indices)
    limit = config.get('max_per_img', -1)
    limit = limit if limit > 0 else len(candidates.cell)
    if with_nms and is_plain_nms(config.get('nms'), len(candidates.cell)):
        boxes, candidates = _suppress_early(decoder, candidates, config.nms, limit)
        scores = candidates.scores
    else:
        boxes = decoder.boxes(candidates)
        large = decoder.is_large(boxes)
        boxes, candidates = boxes[large], candidates.take(large)
        scores = candidates.scores
        if with_nms and len(boxes) > 0:
            found, kept = batched_nms(boxes, scores, candidates.labels, config.get('nms'))
            # Soft NMS lowers scores, so they are those of the result.
            kept, scores = kept[:limit], found[:limit, -1]
            boxes, candidates = boxes[kept], candidates.take(kept)
    results = InstanceData(bboxes=boxes, scores=scores, labels=candidates.labels)
    if config.get('with_uncertainty', False):
        results.edge_std = decoder.edge_std(candidates)
    return results


def _suppress_early(
    decoder: Decoder, candidates: Candidates, config: ConfigDict, count: int
) -> tuple[Tensor, Candidates]:
    """The first ``count`` boxes that greedy NMS keeps of candidates sorted by score.

    mmcv moves classes apart by the largest coordinate of all boxes. float32 rounds the moved boxes,
    and another move would decide close cases otherwise; so candidates that could hold the largest
    coordinate are decoded as well.
    """
    boxes = decoder.boxes(candidates.take(slice(FIRST_ROUND)))
    rest = candidates.take(slice(FIRST_ROUND, None))
    top = _largest(boxes[decoder.is_large(boxes)])
    far = decoder.boxes(rest.take(decoder.farthest(rest) > top))
    top = torch.maximum(top, _largest(far[decoder.is_large(far)]))
    while True:
        large = decoder.is_large(boxes).nonzero().squeeze(1)
        moved = boxes[large]
        if not config.get('class_agnostic', False):
            moved = moved + (candidates.labels[large].to(moved) * (top + 1))[:, None]
        _, kept = nms(moved, candidates.scores[large], config['iou_threshold'])
        if len(kept) >= count or len(boxes) == len(candidates.cell):
            kept = large[kept[:count]]
            return boxes[kept], candidates.take(kept)
        further = candidates.take(slice(len(boxes), 4 * len(boxes)))
        boxes = torch.cat([boxes, decoder.boxes(further)])


def _largest(boxes: Tensor) -> Tensor:
    """The largest coordinate of boxes, minus infinity for none."""
    return torch.cat([boxes.flatten(), boxes.new_full((1,), -torch.inf)]).amax()
