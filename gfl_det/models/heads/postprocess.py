"""Detections from class and edge logits: candidates, their boxes, suppression.

:func:`find_candidates` takes the best pairs of cell and class, :class:`Decoder` turns their edge
logits into boxes, and :func:`detect` decodes few, suppresses in order of score and keeps the best.
Suppression stops as soon as ``max_per_img`` boxes are kept: greedy NMS decides boxes in order of
score, so those are final. The results are those of the full computation.
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

# Logits this little below the threshold are looked at too: a rounded sigmoid decides.
THRESHOLD_SLACK = 1e-3
# Candidates the first round of NMS looks at; each further round looks at four times as many.
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
        """The candidates at an index."""
        return Candidates(*(field[index] for field in self))


Boxes = tuple[Tensor, Candidates]  # boxes (N, 4) xyxy px, and what they were decoded from


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


class Frames(NamedTuple):
    """The images that boxes are cut at and refer to."""

    limit: Tensor | None  # (B, 4) px: width, height twice of the network's input; None: no cut
    scale: Tensor  # (B, 4) along x, y twice, from there to the image that boxes refer to
    smallest: float  # boxes with a side not above it are dropped, px; negative: none are

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
            metas: per image ``img_shape`` and, to rescale, ``scale_factor`` (w, h).
            config: with ``min_bbox_size``.
            rescale: boxes refer to the original image.
            clip: boxes are cut at the image's border.
            device: of the tensors.
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
    """What turns a candidate's edge logits into a box."""

    edges: Sequence[Tensor]  # per level (B, 4 * num_bins, H, W) logits
    base: Tensor  # (L, 4) xyxy px, the prior of cell (0, 0)
    stride: Tensor  # (L, 1) px
    width: Tensor  # (L,) int64, cells of a row
    frames: Frames

    @classmethod
    def of(cls, edges: Sequence[Tensor], priors: PriorLevels, frames: Frames) -> Decoder:
        """A decoder of maps whose priors are these."""
        base = torch.tensor(priors.base)
        stride = torch.tensor([[float(x)] for x, _ in priors.strides])
        width = torch.tensor([level.shape[-1] for level in edges])
        base, stride, width = (each.to(edges[0].device) for each in (base, stride, width))
        return cls(edges, base, stride, width, frames)

    @property
    def num_bins(self) -> int:
        """Bins of an edge's distribution."""
        return self.edges[0].shape[1] // 4

    def logits(self, candidates: Candidates) -> Tensor:
        """Edge logits ``(N, 4, num_bins)``."""
        rows = self.edges[0].new_empty(len(candidates.cell), 4 * self.num_bins)
        for level, edges in enumerate(self.edges):
            where = (candidates.level == level).nonzero().squeeze(1)
            if len(where) > 0:
                place = candidates.image[where], slice(None), candidates.cell[where]
                rows[where] = edges.flatten(2)[place]
        return rows.unflatten(1, (4, -1))

    def centres(self, candidates: Candidates) -> Tensor:
        """Centres ``(N, 2)`` of the candidates' priors, px, rounded as an anchor generator does."""
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
        """What a bin stands for ``(N, 4)``, ltrb: px of the image that boxes refer to."""
        return self.stride[candidates.level] * self.frames.scale[candidates.image]

    def original_centres(self, candidates: Candidates) -> Tensor:
        """Centres ``(N, 2)`` of the candidates' priors, px of the image that boxes refer to."""
        return self.centres(candidates) * self.frames.scale[candidates.image, :2]

    def limits(self, candidates: Candidates) -> Tensor | None:
        """Width and height twice ``(N, 4)`` of the images that boxes refer to; None: no cut."""
        if self.frames.limit is None:
            return None
        return (self.frames.limit * self.frames.scale)[candidates.image]

    def is_large(self, boxes: Tensor) -> Tensor:
        """Which boxes ``(N,)`` have both sides above the smallest."""
        if self.frames.smallest < 0:
            return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        return (boxes[:, 2:] - boxes[:, :2] > self.frames.smallest).all(1)

    def largest(self, boxes: Tensor, image: Tensor, top: Tensor) -> Tensor:
        """The largest coordinate of each image ``(B,)``: of its large boxes, or ``top``."""
        values = boxes.amax(1).masked_fill(~self.is_large(boxes), -math.inf)
        return top.scatter_reduce(0, image, values, 'amax')

    def farthest(self, candidates: Candidates) -> Tensor:
        """Coordinates ``(N,)`` that no box of a candidate exceeds, known without decoding it."""
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
) -> list[InstanceData]:
    """Decode candidates, suppress, and keep the best of each image.

    Args:
        decoder: of the batch.
        candidates: N of all images and levels.
        config: test config with ``nms`` (None: sort only), ``max_per_img`` (not positive: all),
            ``with_uncertainty``, ``with_distribution`` and ``interval_level``.
        with_nms: False gives all candidates.
        interval_factor: stretches the edges' intervals: one, one per side, or by class and size.

    Returns:
        Per image ``bboxes``, ``scores``, ``labels`` and what was asked for (see
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
    return [_result(decoder, *each, config, interval_factor) for each in found]


def is_plain_nms(config: ConfigDict | None, count: int) -> bool:
    """Whether an NMS config asks, for so many boxes, for greedy suppression that can stop early.

    Soft NMS cannot, and from ``split_thr`` boxes on mmcv suppresses class by class, which boxes
    that are to suppress each other across classes must not be.
    """
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if config is None or config.get('type', 'nms') != 'nms' or not known >= set(config):
        return False
    return config.get('class_agnostic', False) or count < config.get('split_thr', SPLIT_THRESHOLD)


def _by_image(candidates: Candidates, counts: list[int]) -> list[Candidates]:
    return [Candidates(*each) for each in zip(*(field.split(counts) for field in candidates))]


def _large_ones(decoder: Decoder, candidates: Candidates, counts: list[int]) -> list[Boxes]:
    """Per image, all boxes that are large enough."""
    boxes = decoder.boxes(candidates)
    large = decoder.is_large(boxes)
    images = zip(boxes.split(counts), large.split(counts), _by_image(candidates, counts))
    return [(boxes[large], each.take(large)) for boxes, large, each in images]


def _suppress(
    boxes: Tensor, candidates: Candidates, config: ConfigDict | None, limit: int
) -> Boxes:
    """The first ``limit`` boxes of an image that NMS of any kind keeps."""
    if len(boxes) == 0:
        return boxes, candidates
    if config is not None and config.get('class_agnostic', False):
        config = ConfigDict(config, split_thr=math.inf)  # mmcv would suppress class by class
    scored, kept = batched_nms(boxes, candidates.scores, candidates.labels, config)
    kept = kept[:limit]
    # Soft NMS lowers scores, so they are those of the result.
    return boxes[kept], candidates.take(kept)._replace(scores=scored[:limit, -1])


def _suppress_early(
    decoder: Decoder, candidates: Candidates, counts: list[int], config: ConfigDict, limit: int
) -> list[Boxes]:
    """Per image, the first ``limit`` boxes that greedy NMS keeps of candidates sorted by score."""
    rank = torch.cat([torch.arange(count) for count in counts]).to(candidates.cell.device)
    first = candidates.take(rank < FIRST_ROUND)
    boxes = decoder.boxes(first)
    step = boxes.new_zeros(len(counts))
    if not config.get('class_agnostic', False):
        # mmcv moves classes apart by the largest coordinate of all boxes. float32 rounds the moved
        # boxes, and another move would decide close cases otherwise; so candidates that could hold
        # the largest coordinate are decoded as well.
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
    """The first ``limit`` boxes of an image that NMS keeps.

    Args:
        decoder: of the batch.
        boxes: ``(M, 4)`` of the first M candidates.
        candidates: of the image, sorted by score.
        step: scalar, moves the boxes of neighbouring labels apart.
        threshold: IoU above which a box goes.
        limit: of boxes.
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
    """The detections of an image with what the config asks for."""
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
