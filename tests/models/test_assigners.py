"""ATSS in closed form and in general, against mmdet's assigner and against a slow oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.assigners import ATSSAssigner as MMDetATSSAssigner
from mmengine.structures import InstanceData

from gfl_det.models.assigners import ATSSAssigner, closed_form, general
from gfl_det.models.assigners.closed_form import fit_lattice, make_lattice, valid_rectangle
from gfl_det.ops.boxes import iou
from gfl_det.utils.timing import peak_memory
from projects.benchmark import models, parts
from tests.helpers.heads import feature_sizes
from tests.helpers.oracles import STRIDES, atss, lattice_priors, random_gts

SHAPES = [(256, 320), (416, 672), (64, 1000), (700, 40), (8, 8), (130, 130), (24, 600)]


def grid(height: int, width: int) -> tuple[torch.Tensor, list[int]]:
    sizes = feature_sizes(height, width)
    priors = torch.tensor(lattice_priors(sizes), dtype=torch.float32)
    return priors, [rows * columns for rows, columns in sizes]


def scene(seed: int) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """A pyramid and truths: inside, over the border, tiny, huge, far outside."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SHAPES[seed % len(SHAPES)]
    count = int(torch.randint(1, 30, (1,), generator=generator))
    gts = random_gts(count, height, width, generator)
    kind = seed // len(SHAPES) % 4
    if kind == 1:  # not cut at the border
        centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 1.6
        sides = torch.exp(torch.rand(count, 2, generator=generator) * 5 + 1)
        gts = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    elif kind == 2:  # crowds at the corners
        corner = torch.randint(0, 2, (count, 2), generator=generator) * torch.tensor(
            [width, height]
        )
        jitter = torch.randn(count, 2, generator=generator) * 6
        sides = torch.exp(torch.rand(count, 2, generator=generator) * 4 + 1)
        gts = torch.cat([corner + jitter - sides / 2, corner + jitter + sides / 2], dim=1)
    return (*grid(height, width), gts)


def run(assigner, priors, counts, gts, ignored=None, **extra):
    labels = torch.arange(len(gts)) % 5
    return assigner.assign(
        InstanceData(priors=priors, **extra),
        counts,
        InstanceData(bboxes=gts, labels=labels),
        None if ignored is None else InstanceData(bboxes=ignored),
    )


def assert_equal_results(found, expected) -> None:
    assert torch.equal(found.gt_inds, expected.gt_inds)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.max_overlaps, expected.max_overlaps)
    assert found.num_gts == expected.num_gts


def test_equal_to_mmdet_prior_by_prior_over_1100_scenes() -> None:
    ours, theirs = ATSSAssigner(topk=9), MMDetATSSAssigner(topk=9)
    positives = 0
    for seed in range(1100):
        priors, counts, gts = scene(seed)
        expected = run(theirs, priors, counts, gts)
        assert_equal_results(run(ours, priors, counts, gts), expected)
        positives += int((expected.gt_inds > 0).sum())
    assert positives > 40000


def test_general_path_is_equal_to_mmdet() -> None:
    ours, theirs = ATSSAssigner(topk=9), MMDetATSSAssigner(topk=9)
    for seed in range(60):
        priors, counts, gts = scene(seed)
        priors = priors + torch.rand(priors.shape, generator=torch.Generator().manual_seed(seed))
        assert fit_lattice(priors, counts) is None or len(priors) <= 10
        assert_equal_results(run(ours, priors, counts, gts), run(theirs, priors, counts, gts))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = MMDetATSSAssigner(topk=9, ignore_iof_thr=0.4)
    ours = ATSSAssigner(topk=9, ignore_iof_thr=0.4)
    monkeypatch.setattr(general, 'MAX_PAIRS', 2000)
    for seed in range(40):
        priors, counts, gts = scene(seed)
        regions = random_gts(4, 200, 300, torch.Generator().manual_seed(seed), spread=5.5)
        assert_equal_results(
            run(ours, priors, counts, gts, regions), run(theirs, priors, counts, gts, regions)
        )


def test_dynamic_cost_is_equal_to_mmdet() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ATSSAssigner(topk=9, alpha=0.8), MMDetATSSAssigner(topk=9, alpha=0.8)
    priors, counts, gts = scene(0)
    extra = dict(
        scores=torch.randn(len(priors), 5, generator=generator),
        bboxes=priors + torch.randn(priors.shape, generator=generator) * 4,
    )
    assert_equal_results(
        run(ours, priors, counts, gts, **extra), run(theirs, priors, counts, gts, **extra)
    )
    with pytest.raises(ValueError, match='scores'):
        run(ours, priors, counts, gts)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 260),
    st.integers(1, 260),
    st.lists(
        st.tuples(
            st.floats(-50, 300) | st.integers(-12, 75).map(lambda i: 4.0 * i),
            st.floats(-50, 300) | st.integers(-12, 75).map(lambda i: 4.0 * i),
            st.floats(0.5, 250) | st.integers(1, 60).map(lambda i: 4.0 * i),
            st.floats(0.5, 250) | st.integers(1, 60).map(lambda i: 4.0 * i),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 12),
)
def test_candidates_are_k_nearest(height: int, width: int, boxes: list, k: int) -> None:
    """No prior left out is nearer than one taken, on any grid, for any centre, ties included."""
    sizes = feature_sizes(height, width)
    priors, counts = grid(height, width)
    gts = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=torch.float32)
    lattice = fit_lattice(priors, counts)
    assert lattice is not None
    image = torch.zeros(len(gts), dtype=torch.long)
    found = closed_form.nearest_priors(lattice, gts, image, k)
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    for gt in range(len(gts)):
        x, y = (gts[gt, :2] + gts[gt, 2:]) / 2
        first = 0
        for level, (rows, columns) in enumerate(sizes):
            count = rows * columns
            distance = (centres[first : first + count] - torch.stack([x, y])).norm(dim=1)
            slots = slice(level * k, (level + 1) * k)
            cells = found.cell[gt, slots][found.valid[gt, slots]]
            assert len(cells) == len(set(cells.tolist())) == min(k, count)
            expected = distance.sort().values[: len(cells)]
            torch.testing.assert_close(distance[cells].sort().values, expected)
            kept = found.valid[gt, slots]
            assert torch.equal(found.centre[gt, slots][kept], centres[first + cells])
            overlaps = iou(priors[first + cells], gts[gt])
            assert torch.equal(found.iou[gt, slots][kept], overlaps)
            first += count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES[:1] + SHAPES[2:]))
def test_equal_to_the_slow_oracle(seed: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    gts = random_gts(5, *shape, generator)
    priors, counts = grid(*shape)
    found = run(ATSSAssigner(topk=9), priors, counts, gts).gt_inds - 1
    expected = atss(priors.double().numpy(), counts, gts.double().numpy())
    # float32 and float64 may part where an IoU lies on the threshold, for one prior at most.
    assert int(np.sum(found.numpy() != np.array(expected))) <= 1


def test_valid_rectangle_is_mmdets_flags() -> None:
    from mmdet.models.task_modules.prior_generators import AnchorGenerator, anchor_inside_flags

    generator = AnchorGenerator(
        strides=list(STRIDES), ratios=[1.0], octave_base_scale=8, scales_per_octave=1
    )
    for border in (-1, 0, 13, 40, 300):
        for image, pad in (((200, 310), (224, 320)), ((256, 170), (256, 192)), ((31, 8), (32, 32))):
            sizes = feature_sizes(256, 320)
            priors = generator.grid_priors(sizes, device='cpu')
            flags = generator.valid_flags(sizes, pad, device='cpu')
            meta = dict(img_shape=image, pad_shape=pad)
            for level, size in enumerate(sizes):
                expected = anchor_inside_flags(priors[level], flags[level], image, border)
                left, top, right, bottom = valid_rectangle(
                    generator.base_anchors[level][0].tolist(),
                    generator.strides[level],
                    size,
                    meta,
                    border,
                )
                inside = torch.zeros(size, dtype=torch.bool)
                inside[top:bottom, left:right] = True
                assert torch.equal(inside.flatten(), expected)


def test_a_rectangle_of_other_bounds_in_each_direction() -> None:
    """Priors of 64 x 16 px at steps of 16 and 8: two columns and one row leave the image first."""
    meta = dict(img_shape=(48, 80), pad_shape=(48, 80))
    found = valid_rectangle([-32.0, -8.0, 32.0, 8.0], (16, 8), (6, 5), meta, 0)
    assert found == (2, 1, 3, 5)


def test_a_batch_is_its_images() -> None:
    """Images with different valid rectangles in one call, against one call each."""
    sizes = feature_sizes(256, 320)
    base = [[-4.0 * s, -4.0 * s, 4.0 * s, 4.0 * s] for s in STRIDES]
    steps = [(s, s) for s in STRIDES]
    pads = [(256, 320), (224, 256), (32, 320), (256, 8)]
    rectangles = [
        [
            valid_rectangle(b, step, size, dict(img_shape=pad, pad_shape=pad), -1)
            for b, step, size in zip(base, steps, sizes)
        ]
        for pad in pads
    ]
    generator = torch.Generator().manual_seed(0)
    gts = [random_gts(count, *pad, generator) for count, pad in zip((6, 0, 3, 5), pads)]
    image = torch.tensor([i for i, each in enumerate(gts) for _ in each])
    lattice = make_lattice(base, steps, sizes, rectangles, torch.device('cpu'))
    batch = closed_form.assign_on_lattice(lattice, torch.cat(gts), image, 9)
    first = 0
    for index, each in enumerate(gts):
        alone = make_lattice(base, steps, sizes, rectangles[index : index + 1], torch.device('cpu'))
        single = closed_form.assign_on_lattice(
            alone, each, torch.zeros(len(each), dtype=torch.long), 9
        )
        mine = batch.valid & (batch.image == index)
        assert torch.equal(batch.gt[mine] - first, single.gt[single.valid])
        for name in ('level', 'cell', 'iou', 'centre'):
            assert torch.equal(getattr(batch, name)[mine], getattr(single, name)[single.valid])
        first += len(each)


@pytest.mark.parametrize(
    'box',
    [
        (10.0, 10.0, 10.0, 40.0),
        (40.0, 40.0, 10.0, 10.0),
        (float('nan'), 0.0, 50.0, 50.0),
        (0.0, 0.0, float('inf'), float('inf')),
        (1e30, 1e30, 2e30, 2e30),
        (-500.0, -500.0, -400.0, -400.0),
    ],
)
def test_an_invalid_gt_gets_nothing_and_changes_no_other(box: tuple) -> None:
    priors, counts, gts = scene(0)
    lattice = fit_lattice(priors, counts)
    assert lattice is not None
    assigner = ATSSAssigner(topk=9)
    clean = run(assigner, priors, counts, gts)
    both = run(assigner, priors, counts, torch.cat([gts, torch.tensor([box])]))
    assert torch.equal(clean.gt_inds, both.gt_inds)


def test_empty_inputs() -> None:
    priors, counts, gts = scene(0)
    for assigner in (ATSSAssigner(topk=9), MMDetATSSAssigner(topk=9)):
        result = run(assigner, priors, counts, gts[:0])
        assert result.gt_inds.eq(0).all()
        assert result.max_overlaps.eq(0).all()
        assert result.labels.eq(-1).all()
    assert len(run(ATSSAssigner(topk=9), priors[:0], [0] * 5, gts).gt_inds) == 0


def test_two_identical_gts_go_to_the_first() -> None:
    priors, counts, gts = scene(0)
    twice = torch.cat([gts, gts])
    found = run(ATSSAssigner(topk=9), priors, counts, twice).gt_inds
    assert int(found.max()) <= len(gts)


def test_slots_hold_the_positives_of_any_threshold() -> None:
    """No numbers that are not all equal have more members at mean + deviation than slots."""
    generator = torch.Generator().manual_seed(0)
    for levels, k in ((2, 1), (3, 1), (5, 1), (2, 9), (5, 9)):
        size = levels * k
        values = torch.rand(20000, size, generator=generator, dtype=torch.float64)
        values[:10000] = values[:10000].round()  # two different values: the worst case
        values = values[values.amax(1) > values.amin(1)]
        reaching = (values >= values.mean(1, keepdim=True) + values.std(1, keepdim=True)).sum(1)
        base = [[0.0, 0.0, 8.0 * 2**level, 8.0 * 2**level] for level in range(levels)]
        steps, sizes = [(8, 8)] * levels, [(20, 20)] * levels
        lattice = make_lattice(base, steps, sizes, [[]], torch.device('cpu'))
        slots = closed_form.capacity(1, lattice, k)
        assert int(reaching.max()) <= slots == max(1, size * (size - 1) // (2 * size - 1))


def test_claims_are_ordered_by_overlap_and_then_by_index() -> None:
    above = np.nextafter(np.float32(0.5), np.float32(1))
    overlap = torch.tensor([[0.0], [0.5], [0.5], [0.0], [0.0], [float(above)], [1.0]])
    keys = closed_form.claim_keys(overlap).flatten()
    assert keys.argsort().tolist() == [4, 3, 0, 2, 1, 5, 6]
    assert int(keys.min()) > 0


@pytest.mark.parametrize('threshold', [-1, 0])
def test_no_region_is_ignored_without_a_threshold(threshold: float) -> None:
    priors, counts, gts = scene(0)
    whole = torch.tensor([[-1000.0, -1000.0, 2000.0, 2000.0]])
    ours = ATSSAssigner(topk=9, ignore_iof_thr=threshold)
    theirs = MMDetATSSAssigner(topk=9, ignore_iof_thr=threshold)
    found = run(ours, priors, counts, gts, whole)
    assert_equal_results(found, run(theirs, priors, counts, gts, whole))
    assert int(found.gt_inds.min()) == 0


def levels_of(strides: tuple, scales: tuple, shape: tuple) -> tuple[torch.Tensor, list[int]]:
    levels = []
    for stride, scale in zip(strides, scales):
        size = (math.ceil(shape[0] / stride), math.ceil(shape[1] / stride))
        priors = lattice_priors([size], (stride,), scale)
        levels.append(torch.tensor(priors, dtype=torch.float32))
    return torch.cat(levels), [len(level) for level in levels]


@pytest.mark.parametrize('k', [1, 2, 9])
def test_few_levels_and_candidates(k: int) -> None:
    ours, theirs = ATSSAssigner(topk=k), MMDetATSSAssigner(topk=k)
    generator = torch.Generator().manual_seed(0)
    for strides, scales in (((8, 16), (8, 8)), ((8, 16), (25, 12)), ((16, 32, 64), (8, 6, 5))):
        priors, counts = levels_of(strides, scales, (160, 200))
        for _ in range(20):
            gts = random_gts(6, 160, 200, generator)
            assert_equal_results(*(run(each, priors, counts, gts) for each in (ours, theirs)))


def test_levels_of_one_size_keep_all_equal_candidates() -> None:
    """All 18 priors hold the gt box: all IoUs equal their mean, and no positive may be lost."""
    priors, counts = levels_of((8, 16), (25, 12.5), (160, 200))
    gt = torch.tensor([[98.0, 97.0, 161.0, 160.0]])
    result = run(ATSSAssigner(topk=9), priors, counts, gt)
    assert int((result.gt_inds > 0).sum()) == 18


def test_a_last_level_without_priors() -> None:
    priors, counts, gts = scene(0)
    kept = sum(counts[:3])
    for empty in ([*counts[:3], 0, 0], [0, *counts[:3]]):
        results = [
            run(each, priors[:kept], empty, gts)
            for each in (ATSSAssigner(topk=9), MMDetATSSAssigner(topk=9))
        ]
        assert_equal_results(*results)


def test_one_level_keeps_all_equal_candidates() -> None:
    """All nine priors contain the gt box, so all IoUs are equal and nothing may be lost."""
    sizes = [(20, 20)]
    priors = torch.tensor(lattice_priors(sizes, strides=(8,)), dtype=torch.float32)
    gts = torch.tensor([[67.0, 67.0, 93.0, 93.0]])
    found = run(ATSSAssigner(topk=9), priors, [400], gts)
    expected = run(MMDetATSSAssigner(topk=9), priors, [400], gts)
    assert torch.equal(found.gt_inds, expected.gt_inds)


def test_fit_lattice_refuses_other_priors() -> None:
    priors, counts = grid(64, 64)
    assert fit_lattice(priors, counts) is not None
    moved = priors.clone()
    moved[5, 0] += 1
    assert fit_lattice(moved, counts) is None
    assert fit_lattice(priors.repeat_interleave(3, dim=0), [3 * count for count in counts]) is None


def assignment_memory(size: tuple[int, int], gts: int) -> float:
    case = parts.Case(size=size, batch=1, gts=gts, classes=1)
    _, ours = parts.assignment_functions(models.build_heads('cpu', 1), case, 'cpu')
    return peak_memory(ours)


def test_memory_grows_with_gts_and_not_with_the_image() -> None:
    usual = assignment_memory((800, 1344), 1000)
    assert assignment_memory((800, 1344), 2000) == pytest.approx(2 * usual, rel=0.1)
    assert assignment_memory((800, 1344), 2000) < 50  # MiB
    assert assignment_memory((1600, 2688), 1000) < 1.3 * usual


@pytest.mark.parametrize('stride', [8.0, 7.3, 12.1, 0.7])
@pytest.mark.parametrize('k', [1, 2, 3, 4, 9])
def test_centres_midway_between_priors(stride: float, k: int) -> None:
    """One ulp decides there which is nearer, and rounding may call either the nearest."""
    size = (14, 15)
    base = torch.tensor([-4 * stride, -4 * stride, 4 * stride, 4 * stride])
    steps = torch.tensor([(x, y) * 2 for y in range(size[0]) for x in range(size[1])])
    priors = base + steps * torch.tensor(stride)
    rectangle = [[(0, 0, size[1], size[0])]]
    lattice = make_lattice(
        [base.tolist()], [(stride, stride)], [size], rectangle, torch.device('cpu')
    )
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    boxes = []
    for column in range(12):
        x = torch.tensor((column + 0.5) * stride)
        for side in (-torch.inf, torch.inf, None):
            moved = x if side is None else torch.nextafter(x, torch.tensor(side))
            boxes.append(torch.stack([moved, moved, moved, moved]))  # of no size: exact centres
    gts = torch.stack(boxes)
    image = torch.zeros(len(gts), dtype=torch.long)
    found = closed_form.nearest_priors(lattice, gts, image, k)
    square = (centres - gts[:, None, :2]).square()  # (T, P, 2), as rounded
    distance = (square[..., 0] + square[..., 1]).sqrt()
    expected = distance.sort(dim=1).values[:, :k]
    assert torch.equal(distance.gather(1, found.cell).sort(dim=1).values, expected)
