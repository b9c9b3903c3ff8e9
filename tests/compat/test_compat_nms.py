"""Our suppression keeps what a slow loop keeps, and what mmcv's compiled operators keep."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.compat import ops
from gfl_det.compat.ops import stand_in_is_used
from tests.helpers import oracles_nms

THRESHOLDS = (0.0, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.9)
METHODS = ('naive', 'linear', 'gaussian')  # in the order of mmcv's numbers for them

needs_compiled_mmcv = pytest.mark.skipif(
    stand_in_is_used(), reason='this mmcv has no compiled operators to compare with'
)

# Few different corners: touching, equal, inverted and empty boxes, and IoU that is k/10 exactly.
corner = st.sampled_from([0, 1, 2, 3, 5, 6, 7, 8, 10, 12])
box = st.tuples(corner, corner, corner, corner)
score = st.one_of(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), st.floats(-1, 1, width=32))


@st.composite
def scenes(draw):
    drawn = draw(st.lists(st.tuples(box, score), max_size=25))
    boxes = torch.tensor([b for b, _ in drawn], dtype=torch.float32).reshape(-1, 4)
    if draw(st.booleans()):  # every second scene has proper boxes only
        boxes = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)
    boxes *= draw(st.sampled_from([1.0, 0.1, 37.0]))
    scores = torch.tensor([s for _, s in drawn], dtype=torch.float32)
    return boxes, scores, draw(st.sampled_from(THRESHOLDS)), draw(st.integers(0, 1))


def random_scene(seed: int):
    """A larger scene of one of many kinds; its scores, and ranks that order them the same way."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([0, 1, 2, 17, 127, 128, 129, 384, 385, 700]))
    near = rng.uniform(-50, 150, (count, 2))
    sides = rng.uniform(0, 40, (count, 2))
    grid = rng.integers(0, 6, (count, 2)) * 2.0
    kinds = [
        np.hstack((near, near + sides)),
        np.hstack((grid, grid + rng.integers(0, 11, (count, 2)))),
        rng.integers(0, 12, (count, 4)),  # inverted ones too
        rng.choice([0, 1, 5, 10, 3e38, -3e38, 1e-38, np.inf, -np.inf, np.nan], (count, 4)),
        np.repeat(rng.uniform(0, 9, (1, 4)), count, axis=0),
    ]
    scores = rng.choice([rng.random(count), rng.normal(size=count), rng.integers(0, 4, count)])
    scores = torch.tensor(scores, dtype=torch.float32)
    ranks = torch.empty(count)
    ranks[scores.sort(dim=0, descending=True, stable=True).indices] = torch.arange(count, 0.0, -1)
    boxes = torch.tensor(kinds[seed % len(kinds)], dtype=torch.float32).reshape(count, 4)
    return boxes, scores, ranks, float(rng.choice(THRESHOLDS)), int(rng.integers(0, 2))


def run_softnms(op, boxes, scores, threshold, floor, method, offset):
    dets = torch.full((len(boxes), 5), -7.0)
    kept = op(
        boxes,
        scores,
        dets,
        iou_threshold=threshold,
        sigma=0.5,
        min_score=floor,
        method=METHODS.index(method),
        offset=offset,
    )
    return kept, dets[: len(kept)]


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_nms_equals_the_slow_loop(scene) -> None:
    boxes, scores, threshold, offset = scene
    kept = ops.nms(boxes, scores, threshold, offset)
    assert kept.dtype == torch.int64
    waiting = scores.sort(descending=True).indices.tolist()
    assert kept.tolist() == oracles_nms.nms(boxes.numpy(), waiting, threshold, offset)


def test_equal_scores_come_in_order_in_small_scenes() -> None:
    boxes = torch.tensor([[10.0 * i, 0, 10 * i + 5, 5] for i in range(16)])
    assert ops.nms(boxes, torch.ones(16), 0.5, 0).tolist() == list(range(16))


@pytest.mark.parametrize('count', [128, 129, 385])  # around the borders of the blocks
@pytest.mark.parametrize('spread', [30.0, 600.0])  # nearly all suppressed, nearly none
def test_nms_of_several_blocks_equals_the_slow_loop(count: int, spread: float) -> None:
    corners = torch.rand(count, 2) * spread
    boxes = torch.cat((corners, corners + 5 + 20 * torch.rand(count, 2)), dim=1)
    scores = torch.rand(count)
    kept = ops.nms(boxes, scores, 0.4, 0).tolist()
    waiting = scores.sort(descending=True).indices.tolist()
    assert kept == oracles_nms.nms(boxes.numpy(), waiting, 0.4, 0)


@pytest.mark.parametrize('tenths', range(1, 10))
def test_an_iou_on_the_threshold_does_not_suppress(tenths: int) -> None:
    # In double precision the float32 quotient would lie above some thresholds, below others.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, tenths]], dtype=torch.float32)
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, tenths / 10, 0).tolist() == [0, 1]
    assert ops.nms(boxes, scores, tenths / 10 - 1e-6, 0).tolist() == [0]


def test_boxes_that_a_reader_can_draw() -> None:
    touching = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4]])
    scores = torch.tensor([0.5, 0.9])
    assert ops.nms(touching, scores, 0.0, 0).tolist() == [1, 0]
    assert ops.nms(touching, scores, 0.0, 1).tolist() == [1]  # they share a column
    point = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]])
    assert ops.nms(point, scores, 0.5, 0).tolist() == [1, 0]  # 0/0 is no overlap
    assert ops.nms(point, scores, 0.5, 1).tolist() == [1]  # the same one pixel
    same = torch.tensor([[0.0, 0, 4, 4]]).repeat(40, 1)
    assert len(ops.nms(same, torch.full((40,), 0.5), 0.5, 0)) == 1
    kept = ops.nms(same, torch.full((40,), -2.0), 1.0, 0)
    assert sorted(kept.tolist()) == list(range(40))


@pytest.mark.parametrize('count', [0, 1])
@pytest.mark.parametrize('offset', [0, 1])
def test_none_and_one(count: int, offset: int) -> None:
    boxes, scores = torch.rand(count, 4), torch.rand(count)
    kept = ops.nms(boxes, scores, 0.5, offset)
    soft, dets = run_softnms(ops.softnms, boxes, scores, 0.5, 2.0, 'linear', offset)
    assert kept.tolist() == soft.tolist() == list(range(count))
    assert kept.dtype == soft.dtype == torch.int64
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), dim=1))


def test_inputs_stay_as_they_are() -> None:
    boxes, scores = torch.rand(30, 4, requires_grad=True), torch.rand(30, requires_grad=True)
    before = boxes.detach().clone(), scores.detach().clone()
    assert not ops.nms(boxes, scores, 0.3, 0).requires_grad
    run_softnms(ops.softnms, boxes, scores, 0.3, 0.1, 'gaussian', 0)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_other_types_of_boxes_are_refused_as_by_compiled_mmcv(dtype: torch.dtype) -> None:
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    with pytest.raises(TypeError, match='boxes are torch'):
        ops.nms(boxes.to(dtype), scores, 0.5, 0)
    with pytest.raises(TypeError, match='scores are torch'):
        run_softnms(ops.softnms, boxes, scores.to(dtype), 0.5, 0.1, 'linear', 0)
    assert len(ops.nms(boxes, scores.to(dtype), 0.9, 0))  # these only give the order


@settings(max_examples=200, deadline=None)
@given(scenes(), st.sampled_from(METHODS), st.sampled_from([0.0, 1e-3, 0.3]))
def test_softnms_equals_the_slow_loop(scene, method: str, floor: float) -> None:
    boxes, scores, threshold, offset = scene
    kept, dets = run_softnms(ops.softnms, boxes, scores, threshold, floor, method, offset)
    expected = oracles_nms.soft_nms(
        boxes.numpy(), scores.numpy(), threshold, 0.5, floor, method, offset
    )
    assert kept.tolist() == [index for index, _ in expected]
    np.testing.assert_array_equal(dets[:, 4], [lowered for _, lowered in expected])
    assert torch.equal(dets[:, :4], boxes[kept])


@needs_compiled_mmcv
@pytest.mark.parametrize('first_seed', range(0, 1000, 100))
def test_nms_equals_compiled_mmcv(first_seed: int) -> None:
    from mmcv import _ext

    for seed in range(first_seed, first_seed + 100):
        boxes, scores, _, threshold, offset = random_scene(seed)
        kept = ops.nms(boxes, scores, threshold, offset)
        theirs = _ext.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert torch.equal(kept, theirs), seed


@needs_compiled_mmcv
@pytest.mark.parametrize('method', METHODS)
def test_softnms_equals_compiled_mmcv(method: str) -> None:
    from mmcv import _ext

    for seed in range(100):
        boxes, scores, ranks, threshold, offset = random_scene(seed)
        if method == 'gaussian':  # the C library rounds an exponential in 1,600 differently,
            scores = ranks  # which must not decide between equal scores
        scene = boxes, scores, threshold, 0.05, method, offset
        kept, dets = run_softnms(ops.softnms, *scene)
        their_kept, their_dets = run_softnms(_ext.softnms, *scene)
        assert torch.equal(kept, their_kept), seed
        tolerance = 1e-5 if method == 'gaussian' else 0
        torch.testing.assert_close(dets, their_dets, rtol=tolerance, atol=0, equal_nan=True)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> list:
    """A torchvision whose ``nms`` notes its arguments and keeps the first box."""
    calls: list = []

    def keep_first(*arguments):
        calls.append(arguments)
        return torch.tensor([0])

    package, theirs = ModuleType('torchvision'), ModuleType('torchvision.ops')
    package.ops, theirs.nms = theirs, keep_first
    monkeypatch.setitem(sys.modules, 'torchvision', package)
    monkeypatch.setitem(sys.modules, 'torchvision.ops', theirs)
    return calls


def test_torchvision_gets_the_threshold_that_float32_means(torchvision: list) -> None:
    boxes, scores = torch.rand(3, 4), torch.rand(3).half()
    assert ops._torchvision_nms(boxes, scores, 0.6).tolist() == [0]
    _, given_scores, threshold = torchvision[0]
    assert given_scores.dtype == boxes.dtype
    assert threshold == float(np.float32(0.6)) != 0.6


@pytest.mark.parametrize('error', [ImportError, OSError, RuntimeError, NotImplementedError])
def test_a_torchvision_that_does_not_work_is_done_without(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*arguments):
        raise error('operator torchvision::nms does not exist')

    monkeypatch.setitem(sys.modules, 'torchvision.ops', SimpleNamespace(nms=fail))
    monkeypatch.setitem(sys.modules, 'torchvision', SimpleNamespace(ops=None))
    assert ops._torchvision_nms(torch.rand(3, 4), torch.rand(3), 0.5) is None


def test_real_torchvision_keeps_the_same_boxes() -> None:
    try:
        from torchvision.ops import nms as _
    except (ImportError, OSError, RuntimeError):
        pytest.skip('torchvision does not import here')
    for seed in range(300):
        boxes, scores, _, threshold, _ = random_scene(seed)
        theirs = ops._torchvision_nms(boxes, scores, threshold)
        assert torch.equal(ops.nms(boxes, scores, threshold, 0), theirs), seed


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('offset', [0, 1])
def test_a_gpu_gives_the_same_boxes_on_its_own_device(offset: int) -> None:
    boxes, scores = torch.rand(500, 4).sort(dim=1).values, torch.rand(500)
    kept = ops.nms(boxes.cuda(), scores.cuda(), 0.5, offset)
    assert kept.is_cuda
    assert torch.equal(kept.cpu(), ops.nms(boxes, scores, 0.5, offset))
