"""Detections from class and edge logits: candidates, boxes and suppression.

:func:`find_candidates` selects the best pairs of cell and class, :class:`Decoder` turns their edge
logits into boxes, and :func:`detect` applies NMS and keeps the best. Suppression stops once
``max_per_img`` boxes are kept: greedy NMS decides boxes in order of score, so the result equals
that of the full computation and few candidates need decoding.
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

from gfl_det.models.assigners.batch import PriorLevels
from gfl_det.ops import distribution
from gfl_det.ops.boxes import distances_to_boxes
from gfl_det.ops.intervals import Factor, FactorTable, edge_intervals, edge_quantiles

# Logits this close below the threshold are kept as well: the rounded sigmoid decides.
THRESHOLD_SLACK = 1e-3
# Candidates in the first round of NMS; each further round takes four times as many.
FIRST_ROUND = 256
# mmcv's default of split_thr.
SPLIT_THRESHOLD = 10000


class Candidates(NamedTuple):
    """Pairs of cell and class that may become detections of a batch."""

    scores: Tensor  # (N,) in [0, 1]
    labels: Tensor  # (N,) int64
    image: Tensor  # (N,) int64, index in the batch
    level: Tensor  # (N,) int64
    cell: Tensor  # (N,) int64, row * width + column

    def take(self, index: Tensor | slice) -> Candidates:
        """Select candidates by index."""
        return Candidates(*(field[index] for field in self))


Boxes = tuple[Tensor, Candidates]  # boxes (N, 4) xyxy px and their candidates


def _rows(maps: Sequence[Tensor], candidates: Candidates) -> Tensor:
    """Values ``(N, C)`` of maps, per level ``(B, C, H, W)``, at the candidates' cells."""
    rows = maps[0].new_empty(len(candidates.cell), maps[0].shape[1])
    for level, values in enumerate(maps):
        where = (candidates.level == level).nonzero().squeeze(1)
        if len(where) > 0:
            place = candidates.image[where], slice(None), candidates.cell[where]
            rows[where] = values.flatten(2)[place]
    return rows


def find_candidates(maps: Sequence[Tensor], config: ConfigDict) -> Candidates:
    """Best pairs of cell and class per level and image.

    The n best pairs lie in the n cells with the largest peaks, so only those cells are read in
    full.

    Args:
        maps: Class logits, per level ``(B, C, H, W)``.
        config: Test config with ``score_thr`` (pairs above it are kept) and ``nms_pre`` (most pairs
            per level and image; all if not positive).

    Returns:
        Pairs by level, then image, cell and class.
    """
    threshold, count = config.score_thr, config.get('nms_pre', -1)
    images, levels = maps[0].shape[0], len(maps)
    places = [_cells(level, _lowest_logit(threshold), count) for level in maps]
    rows = [level.flatten(2)[image, :, cell] for level, (image, cell) in zip(maps, places)]
    sizes = torch.tensor([len(each) for each in rows]).to(maps[0].device)
    level = torch.arange(levels, device=sizes.device).repeat_interleave(sizes)
    image, cell = (torch.cat(each) for each in zip(*places))
    scores = distribution.full_precision(torch.cat(rows)).sigmoid()
    row, label = (scores > threshold).nonzero().unbind(1)
    values = scores[row, label]
    found = Candidates(values, label, image[row], level[row], cell[row])
    if 0 < count < len(row):
        kept = _best_of_groups(found.level * images + found.image, values, levels * images, count)
        if kept is not None:
            found = found.take(kept)
    return found


def _lowest_logit(threshold: float) -> float:
    """Logit below which no score exceeds a threshold."""
    if threshold <= 0:
        return -math.inf
    if threshold >= 1:
        return math.inf
    return math.log(threshold / (1 - threshold)) - THRESHOLD_SLACK


def _cells(maps: Tensor, lowest: float, count: int) -> tuple[Tensor, Tensor]:
    """Image and cell of the ``count`` largest peaks per image above a logit."""
    peaks = maps.amax(1).flatten(1)
    image, cell = (peaks > lowest).nonzero().unbind(1)
    if 0 < count < len(cell):
        kept = _best_of_groups(image, peaks[image, cell], len(peaks), count)
        if kept is not None:
            return image[kept], cell[kept]
    return image, cell


def _best_of_groups(group: Tensor, values: Tensor, groups: int, count: int) -> Tensor | None:
    """Positions of the ``count`` largest values of each group, in order.

    Args:
        group: ``(N,)`` int64, ascending.
        values: ``(N,)``; ties go to the first.
        groups: Number of groups.
        count: Values to keep per group.

    Returns:
        Indices, or None if no group has more values.
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
    """Ascending indices of the ``count`` largest values ``(N,)``; ties go to the first."""
    if len(values) <= count:
        return torch.arange(len(values), device=values.device)
    weakest = values.topk(count).values[-1]
    above, equal = values > weakest, values == weakest
    spare = count - above.sum()
    return (above | (equal & (equal.cumsum(0) <= spare))).nonzero().squeeze(1)


class Frames(NamedTuple):
    """Image borders for clipping, and scales to the images that boxes refer to."""

    limit: Tensor | None  # (B, 4) px: width, height, width, height of the input; None: no clipping
    scale: Tensor  # (B, 4) factors x, y, x, y from the input to the image boxes refer to
    smallest: float  # px; boxes with a side up to this are dropped; negative: none

    @classmethod
    def of(
        cls,
        metas: Sequence[dict],
        config: ConfigDict,
        rescale: bool,
        clip: bool,
        device: torch.device,
    ) -> Frames:
        """Read the images' meta information and the test config.

        Args:
            metas: Per image ``img_shape`` and, for ``rescale``, ``scale_factor`` (w, h).
            config: Test config with ``min_bbox_size``.
            rescale: Boxes refer to the original image.
            clip: Boxes are clipped to the image.
            device: Device of the tensors.
        """
        limits, scales = [], []
        for meta in metas:
            height, width = meta['img_shape'][:2]
            limits.append((width, height) * 2)
            x, y = meta['scale_factor'][:2] if rescale else (1, 1)
            scales.append((1 / x, 1 / y) * 2)
        limit, scale = (
            torch.tensor(each, dtype=torch.float32).reshape(-1, 4).to(device)
            for each in (limits, scales)
        )
        return cls(limit if clip else None, scale, config.get('min_bbox_size', -1))


class Decoder(NamedTuple):
    """Decoder of candidates' edge logits into boxes."""

    edges: Sequence[Tensor]  # per level (B, 4 * num_bins, H, W) logits
    base: Tensor  # (L, 4) xyxy px, the prior of cell (0, 0)
    stride: Tensor  # (L, 1) px
    width: Tensor  # (L,) int64, cells of a row
    frames: Frames

    @classmethod
    def of(cls, edges: Sequence[Tensor], priors: PriorLevels, frames: Frames) -> Decoder:
        """Create a decoder for maps with the given priors."""
        base = torch.tensor(priors.base)
        stride = torch.tensor([[float(x)] for x, _ in priors.strides])
        width = torch.tensor([level.shape[-1] for level in edges])
        base, stride, width = (each.to(edges[0].device) for each in (base, stride, width))
        return cls(edges, base, stride, width, frames)

    @property
    def num_bins(self) -> int:
        """Number of bins of an edge's distribution."""
        return self.edges[0].shape[1] // 4

    def logits(self, candidates: Candidates) -> Tensor:
        """Edge logits ``(N, 4, num_bins)``."""
        return _rows(self.edges, candidates).unflatten(1, (4, -1))

    def centres(self, candidates: Candidates) -> Tensor:
        """Centres ``(N, 2)`` px of the candidates' priors, rounded like the anchor generator's."""
        width = self.width[candidates.level]
        row = candidates.cell.div(width, rounding_mode='floor')
        cell = torch.stack([candidates.cell - row * width, row], dim=1)
        shift = cell * self.stride[candidates.level]
        low, high = self.base[candidates.level].split(2, dim=1)
        return ((low + shift) + (high + shift)) / 2

    def boxes(self, candidates: Candidates) -> Tensor:
        """Boxes ``(N, 4)`` xyxy, clipped and rescaled."""
        distances = distribution.mean(self.logits(candidates)) * self.stride[candidates.level]
        boxes = distances_to_boxes(self.centres(candidates), distances)
        if self.frames.limit is not None:
            boxes = torch.minimum(boxes.clamp(min=0), self.frames.limit[candidates.image])
        return boxes * self.frames.scale[candidates.image]

    def edge_std(self, candidates: Candidates) -> Tensor:
        """Standard deviations ``(N, 4)`` of the edges, ltrb, rescaled."""
        return distribution.std(self.logits(candidates)) * self.bin_widths(candidates)

    def bin_widths(self, candidates: Candidates) -> Tensor:
        """Bin widths ``(N, 4)``, ltrb, in px of the image that boxes refer to."""
        return self.stride[candidates.level] * self.frames.scale[candidates.image]

    def original_centres(self, candidates: Candidates) -> Tensor:
        """Centres ``(N, 2)`` of the candidates' priors in px of the image that boxes refer to."""
        return self.centres(candidates) * self.frames.scale[candidates.image, :2]

    def limits(self, candidates: Candidates) -> Tensor | None:
        """Width, height, width, height ``(N, 4)`` of the images that boxes refer to, if clipped."""
        if self.frames.limit is None:
            return None
        return (self.frames.limit * self.frames.scale)[candidates.image]

    def is_large(self, boxes: Tensor) -> Tensor:
        """Mask ``(N,)`` of the boxes with both sides above the smallest size."""
        if self.frames.smallest < 0:
            return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        return (boxes[:, 2:] - boxes[:, :2] > self.frames.smallest).all(1)

    def largest(self, boxes: Tensor, image: Tensor, top: Tensor) -> Tensor:
        """Largest coordinate ``(B,)`` among the large boxes of each image, or ``top``."""
        values = boxes.amax(1).masked_fill(~self.is_large(boxes), -math.inf)
        return top.scatter_reduce(0, image, values, 'amax')

    def farthest(self, candidates: Candidates) -> Tensor:
        """Upper bounds ``(N,)`` of the candidates' box coordinates, without decoding."""
        reach = self.centres(candidates) + (self.num_bins - 1) * self.stride[candidates.level]
        if self.frames.limit is not None:
            reach = torch.minimum(reach, self.frames.limit[candidates.image][:, :2])
        return (reach * self.frames.scale[candidates.image][:, :2]).amax(1)


def detect(
    decoder: Decoder,
    candidates: Candidates,
    config: ConfigDict,
    with_nms: bool,
    interval_factor: Factor = 1.0,
    class_maps: Sequence[Tensor] | None = None,
) -> list[InstanceData]:
    """Decode candidates, apply NMS and keep the best of each image.

    Args:
        decoder: Decoder of the batch.
        candidates: N candidates of all images and levels.
        config: Test config with ``nms`` (None: only sort), ``max_per_img`` (all if not positive),
            ``with_uncertainty``, ``with_distribution`` and ``interval_level``.
        with_nms: False returns all candidates.
        interval_factor: Stretch of the edges' intervals: one, one per side, or by class and size.
        class_maps: Class logits, per level ``(B, C, H, W)``, to add ``class_scores (N, C)`` from.

    Returns:
        Per image ``bboxes``, ``scores``, ``labels`` and the requested fields (see
        :class:`.gfl_head.GFLHead`), by descending score.
    """
    order = candidates.scores.sort(descending=True, stable=True).indices
    order = order[candidates.image[order].sort(stable=True).indices]
    candidates = candidates.take(order)
    counts = torch.bincount(candidates.image, minlength=len(decoder.frames.scale)).tolist()
    if not with_nms:
        found = _large_ones(decoder, candidates, counts)
    else:
        limit = config.get('max_per_img', -1)
        limit = limit if limit > 0 else len(order)
        if is_plain_nms(config.get('nms'), max(counts)):
            found = _suppress_early(decoder, candidates, counts, config.nms, limit)
        else:
            found = [
                _suppress(boxes, each, config.get('nms'), limit)
                for boxes, each in _large_ones(decoder, candidates, counts)
            ]
    results = [_result(decoder, *each, config, interval_factor) for each in found]
    if class_maps is not None:
        for result, (_, kept) in zip(results, found):
            logits = distribution.full_precision(_rows(class_maps, kept))
            result.class_scores = logits.sigmoid()
    return results


def is_plain_nms(config: ConfigDict | None, count: int) -> bool:
    """Whether an NMS config means greedy suppression that can stop early, for ``count`` boxes.

    Soft NMS cannot stop early, and from ``split_thr`` boxes on mmcv suppresses per class, which
    would be wrong for class-agnostic NMS.
    """
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if config is None or config.get('type', 'nms') != 'nms' or not known >= set(config):
        return False
    return config.get('class_agnostic', False) or count < config.get('split_thr', SPLIT_THRESHOLD)


def _by_image(candidates: Candidates, counts: list[int]) -> list[Candidates]:
    return [Candidates(*each) for each in zip(*(field.split(counts) for field in candidates))]


def _large_ones(decoder: Decoder, candidates: Candidates, counts: list[int]) -> list[Boxes]:
    """All large enough boxes per image."""
    boxes = decoder.boxes(candidates)
    large = decoder.is_large(boxes)
    images = zip(boxes.split(counts), large.split(counts), _by_image(candidates, counts))
    return [(boxes[large], each.take(large)) for boxes, large, each in images]


def _suppress(
    boxes: Tensor, candidates: Candidates, config: ConfigDict | None, limit: int
) -> Boxes:
    """First ``limit`` boxes of an image kept by any kind of NMS."""
    if len(boxes) == 0:
        return boxes, candidates
    if config is not None and config.get('class_agnostic', False):
        config = ConfigDict(config, split_thr=math.inf)  # mmcv would suppress per class
    scored, kept = batched_nms(boxes, candidates.scores, candidates.labels, config)
    kept = kept[:limit]
    # Soft NMS lowers scores, so the scores come from its result.
    return boxes[kept], candidates.take(kept)._replace(scores=scored[:limit, -1])


def _suppress_early(
    decoder: Decoder, candidates: Candidates, counts: list[int], config: ConfigDict, limit: int
) -> list[Boxes]:
    """First ``limit`` boxes per image kept by greedy NMS of candidates sorted by score."""
    rank = torch.cat([torch.arange(count) for count in counts]).to(candidates.cell.device)
    first = candidates.take(rank < FIRST_ROUND)
    boxes = decoder.boxes(first)
    step = boxes.new_zeros(len(counts))
    if not config.get('class_agnostic', False):
        # mmcv shifts classes apart by the largest coordinate of all boxes. The float32 rounding of
        # shifted boxes decides close cases, so the shift must be the same: candidates that could
        # hold the largest coordinate are decoded as well.
        top = decoder.largest(boxes, first.image, step - math.inf)
        rest = candidates.take(rank >= FIRST_ROUND)
        far = rest.take(decoder.farthest(rest) > top[rest.image])
        step = decoder.largest(decoder.boxes(far), far.image, top) + 1
    firsts = [min(count, FIRST_ROUND) for count in counts]
    images = zip(boxes.split(firsts), _by_image(candidates, counts), step)
    return [_first_kept(decoder, *each, config['iou_threshold'], limit) for each in images]


def _first_kept(
    decoder: Decoder,
    boxes: Tensor,
    candidates: Candidates,
    step: Tensor,
    threshold: float,
    limit: int,
) -> Boxes:
    """First ``limit`` boxes of an image kept by greedy NMS.

    Args:
        decoder: Decoder of the batch.
        boxes: ``(M, 4)`` of the first M candidates.
        candidates: Candidates of the image, sorted by score.
        step: Scalar shift in px between boxes of consecutive labels.
        threshold: IoU above which a box is suppressed.
        limit: Most boxes to keep.
    """
    if len(boxes) == 0:
        return boxes, candidates
    while True:
        large = decoder.is_large(boxes).nonzero().squeeze(1)
        moved = boxes[large] + (candidates.labels[large] * step)[:, None]
        _, kept = nms(moved, candidates.scores[large], threshold)
        if len(kept) >= limit or len(boxes) == len(candidates.cell):
            kept = large[kept[:limit]]
            return boxes[kept], candidates.take(kept)
        further = candidates.take(slice(len(boxes), 4 * len(boxes)))
        boxes = torch.cat([boxes, decoder.boxes(further)])


def _result(
    decoder: Decoder,
    boxes: Tensor,
    kept: Candidates,
    config: ConfigDict,
    interval_factor: Factor,
) -> InstanceData:
    """Detections of an image with the fields that the config requests."""
    result = InstanceData(bboxes=boxes, scores=kept.scores, labels=kept.labels)
    level = config.get('interval_level')
    if config.get('with_uncertainty', False):
        result.edge_std = decoder.edge_std(kept)
    if level is None and not config.get('with_distribution', False):
        return result
    logits, widths = decoder.logits(kept).float(), decoder.bin_widths(kept)
    centres = decoder.original_centres(kept)
    if config.get('with_distribution', False):
        result.edge_logits, result.bin_widths, result.prior_centres = logits, widths, centres
    if level is not None:
        quantiles = edge_quantiles(logits, widths, centres, level)
        if isinstance(interval_factor, FactorTable):
            stretch: float | Sequence[float] | Tensor = interval_factor.of(kept.labels, boxes)
        else:
            stretch = interval_factor
        result.edge_low, result.edge_high = edge_intervals(quantiles, stretch, decoder.limits(kept))
        result.edge_entropy = distribution.entropy(logits)
    return result
