"""Geometry that a reader can draw, and mmdet's own functions as witnesses."""

import pytest
import torch
from mmdet.structures.bbox import bbox2distance, bbox_overlaps, distance2bbox

from gfl_det.ops import boxes


def test_distances_and_boxes_are_inverse_and_mmdets() -> None:
    points = torch.tensor([[10.0, 20.0], [0.0, 0.0]])
    drawn = torch.tensor([[7.0, 15.0, 11.0, 30.0], [1.0, 2.0, 3.0, 4.0]])
    distances = boxes.boxes_to_distances(points, drawn)
    assert distances[0].tolist() == [3, 5, 1, 10]
    assert distances[1].tolist() == [-1, -2, 3, 4]  # a point outside: negative
    assert torch.equal(boxes.distances_to_boxes(points, distances), drawn)
    assert torch.equal(distances, bbox2distance(points, drawn))
    assert torch.equal(distance2bbox(points, distances), drawn)
    # With an axis more, as of points that several boxes share.
    assert torch.equal(boxes.boxes_to_distances(points[:, None], drawn[:, None])[:, 0], distances)
    assert torch.equal(boxes.distances_to_boxes(points[:, None], distances[:, None])[:, 0], drawn)


def test_iou_of_drawn_boxes() -> None:
    a = torch.tensor([0.0, 0.0, 4.0, 4.0])
    cases = {
        (0.0, 0.0, 4.0, 4.0): 1.0,
        (2.0, 0.0, 6.0, 4.0): 8 / 24,
        (4.0, 0.0, 8.0, 4.0): 0.0,  # touching
        (1.0, 1.0, 3.0, 3.0): 4 / 16,
        (1.0, 1.0, 1.0, 3.0): 0.0,  # no area
    }
    for other, expected in cases.items():
        assert float(boxes.iou(a, torch.tensor(other))) == pytest.approx(expected)
    empty = torch.zeros(4)
    assert float(boxes.iou(empty, empty)) == 0.0


def test_giou_of_boxes_apart() -> None:
    a, b = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0])
    assert float(boxes.giou(a, b)) == pytest.approx(-0.5)  # hull 4, union 2
    assert float(boxes.giou(a, a)) == pytest.approx(1.0)


def test_iou_is_mmdets_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.rand(2, 5000, 4, generator=generator) * 1000
    a, b = (torch.cat([each[:, :2], each[:, :2] + each[:, 2:] ** 0.8], dim=1) for each in raw)
    assert torch.equal(boxes.iou(a, b), bbox_overlaps(a, b, is_aligned=True))
    torch.testing.assert_close(boxes.giou(a, b), bbox_overlaps(a, b, mode='giou', is_aligned=True))
    assert boxes.iou(a[:0], b[:0]).shape == (0,)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.tensor([[0.0, 0.0, 4.0, 5.0], [1.0, 1.0, 9.0, 3.0]], dtype=torch.float64)
    a = a + torch.rand(2, 4, generator=generator, dtype=torch.float64) / 3
    b = a + torch.rand(2, 4, generator=generator, dtype=torch.float64)
    for function in (boxes.iou, boxes.giou):
        assert torch.autograd.gradcheck(function, (a.requires_grad_(), b.requires_grad_()))


def test_tiny_and_empty_boxes() -> None:
    """A box of side .02 has an area of .0004 and is still itself; two empty ones share nothing."""
    tiny = torch.tensor([5.0, 5.0, 5.02, 5.02], dtype=torch.float64)
    for function in (boxes.iou, boxes.giou):
        assert float(function(tiny, tiny)) == pytest.approx(1.0, rel=1e-9)
    assert float(boxes.giou(torch.zeros(4), torch.zeros(4))) == 0.0
    apart = tiny + torch.tensor([0.04, 0, 0.04, 0], dtype=torch.float64)
    assert float(boxes.giou(tiny, apart)) == pytest.approx(-1 / 3, rel=1e-9)  # a hull of three
