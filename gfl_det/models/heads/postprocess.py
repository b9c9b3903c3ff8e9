"""From candidates to detections: decode few, suppress in order of score, keep the best.

Suppression stops as soon as ``max_per_img`` boxes are kept: greedy NMS decides boxes in order of
score, so those are final. The results are those of the full computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmcv.ops import batched_nms, nms
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.models.heads.candidates import Candidates
from gfl_det.models.heads.decoding import Decoder
from gfl_det.ops import distribution
from gfl_det.ops.intervals import edge_intervals, edge_quantiles

# Candidates the first round of NMS looks at; each further round looks at four times as many.
FIRST_ROUND = 256
# mmcv's default of split_thr.
SPLIT_THRESHOLD = 10000

Boxes = tuple[Tensor, Candidates]  # boxes (N, 4) xyxy px, and what they were decoded from


def is_plain_nms(config: ConfigDict | None, count: int) -> bool:
    """Whether an NMS config asks, for so many boxes, for greedy suppression that can stop early.

    Soft NMS cannot, and from ``split_thr`` boxes on mmcv suppresses class by class.
    """
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if config is None or config.get('type', 'nms') != 'nms' or not known >= set(config):
        return False
    return count < config.get('split_thr', SPLIT_THRESHOLD)


def detect(
    decoder: Decoder,
    candidates: Candidates,
    config: ConfigDict,
    with_nms: bool,
    interval_factor: float | Sequence[float] = 1.0,
) -> list[InstanceData]:
    """Decode candidates, suppress, and keep the best of each image.

    Args:
        decoder: of the batch.
        candidates: N of all images and levels.
        config: test config with ``nms`` (None: sort only), ``max_per_img`` (not positive: all),
            ``with_uncertainty``, ``with_distribution`` and ``interval_level``.
        with_nms: False gives all candidates.
        interval_factor: stretches the edges' intervals; one, or one a side.

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


def _result(
    decoder: Decoder,
    boxes: Tensor,
    kept: Candidates,
    config: ConfigDict,
    interval_factor: float | Sequence[float],
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
        result.edge_low, result.edge_high = edge_intervals(
            quantiles, interval_factor, decoder.limits(kept)
        )
        result.edge_entropy = distribution.entropy(logits)
    return result


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
