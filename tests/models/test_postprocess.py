"""What decides close cases in post-processing: thresholds, reach, and classes moved apart."""

from __future__ import annotations

import math

import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict

from gfl_det.models.heads import postprocess
from gfl_det.models.heads.postprocess import (
    Candidates,
    Decoder,
    Frames,
    detect,
    find_candidates,
    is_plain_nms,
)
from tests.helpers.heads import head_pair, make_maps, make_meta

SIZE = (128, 160)


def kept_logits(logits: torch.Tensor, threshold: float) -> list[bool]:
    """Which of N logits, one a cell, are candidates."""
    config = ConfigDict(score_thr=threshold)
    cells = find_candidates([logits.view(1, 1, 1, -1)], config).cell.tolist()
    return [index in cells for index in range(len(logits))]


def test_a_score_at_the_threshold_is_no_candidate() -> None:
    """mmdet keeps what is above it; sigmoid(0) is exactly .5."""
    assert kept_logits(torch.tensor([-0.1, 0.0, 0.1]), 0.5) == [False, False, True]


@pytest.mark.parametrize('threshold', [0.05, 0.3, 0.45, 0.9])
def test_float_neighbours_of_the_threshold_count_as_sigmoid_does(threshold: float) -> None:
    """The threshold's logit and 300 floats on each side, among which a rounded sigmoid turns."""
    logits = [torch.tensor(math.log(threshold / (1 - threshold)))]
    for direction in (-torch.inf, torch.inf):
        each = logits[0]
        for _ in range(300):
            each = torch.nextafter(each, torch.tensor(direction))
            logits.append(each)
    values = torch.stack(logits)
    expected = values.sigmoid() > threshold
    assert expected.any()
    assert not expected.all()
    assert kept_logits(values, threshold) == expected.tolist()


def decoder_of(maps: list, clip: bool, scale: float = 1.0) -> Decoder:
    head, _ = head_pair()
    metas = [dict(make_meta(SIZE), scale_factor=(scale, scale))] * len(maps[0])
    frames = Frames.of(metas, ConfigDict(), True, clip, torch.device('cpu'))
    return Decoder.of(maps, head.priors, frames)


@pytest.mark.parametrize('clip', [False, True])
def test_no_box_reaches_beyond_the_farthest(clip: bool) -> None:
    """All of each distribution in the last bin: boxes as large as can be."""
    _, edges = make_maps(1, SIZE, torch.Generator())
    for level in edges:
        level.unflatten(1, (4, -1))[:] = -40.0
        level.unflatten(1, (4, -1))[:, :, -1] = 40.0
    decoder = decoder_of(edges, clip, scale=0.7)
    for index, level in enumerate(edges):
        cell = torch.arange(level[0, 0].numel())
        zeros = torch.zeros_like(cell)
        found = Candidates(torch.ones(len(cell)), zeros, zeros, zeros + index, cell)
        reach, largest = decoder.farthest(found), decoder.boxes(found).amax(1)
        assert (reach >= largest - 1e-3).all()
        torch.testing.assert_close(reach, largest)  # and no farther than that


def test_classes_are_moved_apart_as_by_mmcv(monkeypatch) -> None:
    """With boxes at negative coordinates too, whose classes still must not meet."""
    monkeypatch.setattr(postprocess, 'FIRST_ROUND', 8)  # several rounds even here
    generator = torch.Generator().manual_seed(0)
    config = ConfigDict(nms=dict(type='nms', iou_threshold=0.3), max_per_img=60, score_thr=0.1)
    decided = 0
    for _ in range(20):
        cls, edges = make_maps(1, (64, 64), generator, bias=-1.0)
        # Some boxes lie left of and above the image, others reach its other end.
        decoder = decoder_of(edges, clip=False)
        found = find_candidates(cls, config)
        (fast,) = detect(decoder, found, config, True)
        boxes = decoder.boxes(found)
        assert boxes.min() < 0
        scored, kept = batched_nms(boxes, found.scores, found.labels, dict(config.nms))
        assert torch.equal(fast.scores, scored[:60, 4])
        assert torch.equal(fast.bboxes, boxes[kept[:60]])
        assert torch.equal(fast.labels, found.labels[kept[:60]])
        decided += len(kept)
    assert decided > 200


@pytest.mark.parametrize(
    ('changes', 'count', 'plain'),
    [
        ({}, 9999, True),
        ({}, 10000, False),  # mmcv's own split_thr
        (dict(split_thr=20), 19, True),
        (dict(split_thr=20), 20, False),
        (dict(split_thr=20, class_agnostic=True), 20, True),
        (dict(type='soft_nms'), 1, False),
        (dict(max_num=5), 1, False),
    ],
)
def test_greedy_suppression_is_asked_for(changes: dict, count: int, plain: bool) -> None:
    config = ConfigDict({'type': 'nms', 'iou_threshold': 0.5, **changes})
    assert is_plain_nms(config, count) is plain


@pytest.mark.parametrize(('most', 'number'), [(-1, 2), (0, 2), (1, 1), (2, 2)])
@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_the_most_per_image_if_positive(kind: str, most: int, number: int) -> None:
    """Two far cells, of which nothing is suppressed."""
    edges = torch.zeros(1, 68, 1, 40)
    scores = torch.full((1, 1, 1, 40), -9.0)
    scores[..., [0, 39]] = 1.0
    config = ConfigDict(nms=dict(type=kind, iou_threshold=0.5), max_per_img=most, score_thr=0.1)
    found = find_candidates([scores], config)
    (result,) = detect(decoder_of([edges], clip=False), found, config, True)
    assert len(result) == number


def test_the_largest_coordinate_is_that_of_large_boxes() -> None:
    """Left of and above the image; the second box is 10 px wide, which is not above 10."""
    config = ConfigDict(min_bbox_size=10)
    frames = Frames.of([make_meta(SIZE)] * 3, config, False, False, torch.device('cpu'))
    head, _ = head_pair()
    decoder = Decoder.of(make_maps(3, SIZE, torch.Generator())[1], head.priors, frames)
    boxes = torch.tensor([[-50.0, -50, -20, -30], [-15, -40, -5, -5], [-9, -9, 4, 2]])
    top = torch.tensor([-math.inf, -math.inf, 7.0])
    found = decoder.largest(boxes, torch.tensor([0, 0, 2]), top)
    assert found.tolist() == [-20, -math.inf, 7]


def test_boxes_of_two_classes_do_not_touch_after_the_move() -> None:
    """Both are the box (-8, -8, 0, 0): mmcv moves the second class by the largest coordinate and 1,
    which leaves them an IoU of 49 / 79."""
    shape, scores = (1, 1), torch.tensor([2.0, 1.9])
    edges = torch.full((1, 4, 17), -40.0)
    for side, bins in enumerate((1, 1, 0, 0)):  # of 8 px, from the centre (0, 0) to the left and up
        edges[0, side, bins] = 40.0
    decoder = decoder_of([edges.view(1, 68, *shape)], clip=False)
    config = ConfigDict(nms=dict(type='nms', iou_threshold=0.7), max_per_img=10, score_thr=0.1)
    found = find_candidates([scores.view(1, 2, 1, 1)], config)
    (result,) = detect(decoder, found, config, True)
    boxes = decoder.boxes(found)
    torch.testing.assert_close(boxes, torch.tensor([[-8.0, -8.0, 0.0, 0.0]] * 2))
    _, kept = batched_nms(boxes, found.scores, found.labels, dict(config.nms))
    assert len(result) == len(kept) == 2
