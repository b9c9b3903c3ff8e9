"""Beyond mmdet's head: uncertainty, no synchronisation, refusals, harmless bad boxes."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from mmdet.models.dense_heads.gfl_head import Integral as MMDetIntegral
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from gfl_det.errors import ConfigError
from gfl_det.models.heads.gfl_head import Integral
from gfl_det.ops import distribution
from tests.helpers.compiling import assert_compiles
from tests.helpers.heads import (
    head_config,
    head_pair,
    losses_and_gradients,
    make_gts,
    make_maps,
    make_meta,
)
from tests.helpers.synchronisation import NoSynchronisation

SIZE = (128, 160)
BEST_PRIOR = dict(type='gfl_det.ATSSAssigner', topk=9, with_best_prior=True)
OPTIONS = [
    {},
    dict(train_cfg=dict(pos_weight=2.0, allowed_border=30)),
    dict(train_cfg=dict(assigner=BEST_PRIOR)),
]
ALL_OPTIONS = dict(pos_weight=2.0, allowed_border=30, assigner=BEST_PRIOR)


@pytest.mark.parametrize('reg_max', [1, 16])
def test_integral_is_mmdets(reg_max: int) -> None:
    logits = torch.randn(7, 4 * (reg_max + 1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Integral(reg_max)(logits), MMDetIntegral(reg_max)(logits))


def test_edge_std_follows_its_box_through_nms_and_rescaling() -> None:
    """Each edge's distribution is two equal bins d apart, so its deviation is d / 2 strides."""
    ours, _ = head_pair(test_cfg=dict(with_uncertainty=True, score_thr=0.3))
    cls, edges = make_maps(1, SIZE, torch.Generator().manual_seed(0), bias=-9.0)
    for level in (*cls, *edges):
        level.fill_(-9.0)
    half_widths = torch.tensor([1, 2, 3, 4])  # bins from the middle bin 6, of l, t, r, b
    level, row, column = 1, 3, 5  # stride 16: centre (80, 48)
    cls[level][0, 2, row, column] = 3.0
    cls[level][0, 2, row, column + 1] = 2.9  # overlaps; is suppressed
    cls[level][0, 4, row, column] = 1.0
    logits = torch.full((4, 17), -80.0)
    for edge, half in enumerate(half_widths):
        logits[edge, 6 - half] = logits[edge, 6 + half] = 0.0
    for x in (column, column + 1):
        edges[level][0, :, row, x] = logits.flatten()
    meta = make_meta(SIZE, scale=2.0)
    meta['scale_factor'] = (2.0, 4.0)
    (result,) = ours.predict_by_feat(cls, edges, batch_img_metas=[meta], rescale=True)
    assert result.labels.tolist() == [2, 4]
    assert result.scores[0] > result.scores[1]
    expected = half_widths * 16 / torch.tensor([2.0, 4.0, 2.0, 4.0])
    torch.testing.assert_close(result.edge_std, expected.expand(2, 4))
    (raw,) = ours.predict_by_feat(cls, edges, batch_img_metas=[meta], with_nms=False)
    torch.testing.assert_close(raw.edge_std[0], half_widths * 16.0)
    (empty,) = ours.predict_by_feat(
        [level - 20 for level in cls], edges, batch_img_metas=[meta], rescale=True
    )
    assert empty.edge_std.shape == (0, 4)


def test_the_distributions_give_the_boxes_and_their_spread() -> None:
    wanted = dict(with_uncertainty=True, with_distribution=True, score_thr=0.3)
    ours, _ = head_pair(test_cfg=wanted)
    ours.bbox_coder.clip_border = False
    maps = make_maps(2, SIZE, torch.Generator().manual_seed(2), bias=0.0)
    metas = [make_meta(SIZE), make_meta(SIZE, scale=2.0)]
    metas[1]['scale_factor'] = (2.0, 4.0)
    for found in ours.predict_by_feat(*maps, batch_img_metas=metas, rescale=True):
        distances = distribution.mean(found.edge_logits) * found.bin_widths
        low, high = distances.split(2, dim=1)
        boxes = torch.cat([found.prior_centres - low, found.prior_centres + high], dim=1)
        torch.testing.assert_close(boxes, found.bboxes)
        spread = distribution.std(found.edge_logits) * found.bin_widths
        torch.testing.assert_close(spread, found.edge_std)
    (empty,) = ours.predict_by_feat(
        [level[:1] - 40 for level in maps[0]],
        [level[:1] for level in maps[1]],
        batch_img_metas=metas[:1],
    )
    assert empty.edge_logits.shape == (0, 4, 17)
    assert empty.bin_widths.shape == (0, 4)
    assert empty.prior_centres.shape == (0, 2)


def test_uncertainty_changes_no_detection() -> None:
    maps = make_maps(1, SIZE, torch.Generator().manual_seed(1), bias=-2.0)
    plain, unsure = (
        head_pair(test_cfg=dict(with_uncertainty=flag))[0].predict_by_feat(
            *maps, batch_img_metas=[make_meta(SIZE)]
        )[0]
        for flag in (False, True)
    )
    assert 'edge_std' not in plain
    assert torch.equal(plain.bboxes, unsure.bboxes)
    assert (unsure.edge_std > 0).all()


def test_every_class_has_the_score_of_its_logit_at_the_boxs_cell() -> None:
    """Its own score is the box's; and no detection changes."""
    maps = make_maps(2, SIZE, torch.Generator().manual_seed(3), bias=-1.0)
    metas = [make_meta(SIZE)] * 2
    plain, asked = (
        head_pair(test_cfg=dict(with_class_scores=flag, score_thr=0.3))[0].predict_by_feat(
            *maps, batch_img_metas=metas
        )
        for flag in (False, True)
    )
    for image, (before, found) in enumerate(zip(plain, asked)):
        assert 'class_scores' not in before
        assert torch.equal(before.bboxes, found.bboxes)
        own = found.class_scores[torch.arange(len(found)), found.labels]
        torch.testing.assert_close(own, found.scores, rtol=0, atol=1e-7)
        cells = torch.cat([level[image].flatten(1).T for level in maps[0]]).sigmoid()
        for row in found.class_scores:
            assert ((cells - row).abs().amax(1) < 1e-6).sum() == 1
    (empty,) = head_pair(test_cfg=dict(with_class_scores=True))[0].predict_by_feat(
        [level[:1] - 40 for level in maps[0]],
        [level[:1] for level in maps[1]],
        batch_img_metas=metas[:1],
    )
    assert empty.class_scores.shape == (0, 8)


def test_score_factors_are_refused() -> None:
    ours, _ = head_pair()
    maps = make_maps(1, SIZE, torch.Generator())
    with pytest.raises(ValueError, match='score_factors'):
        ours.predict_by_feat(*maps, maps[0], batch_img_metas=[make_meta(SIZE)])


@pytest.mark.parametrize('counts', [(3, 5), (0, 2), (0, 0)])
@pytest.mark.parametrize('options', OPTIONS)
def test_losses_never_wait_for_the_device(counts: tuple, options: dict) -> None:
    ours, _ = head_pair(**options)
    generator = torch.Generator().manual_seed(0)
    maps = make_maps(2, SIZE, generator)
    leaves = [[level.requires_grad_() for level in kind] for kind in maps]
    gts = [make_gts(count, SIZE, generator) for count in counts]
    metas = [make_meta(SIZE), make_meta((100, 160), (128, 160))]
    with NoSynchronisation():
        losses = ours.loss_by_feat(*leaves, gts, metas)
    sum(losses.values()).backward()
    assert all(level.grad is not None for kind in leaves for level in kind)


@pytest.mark.parametrize('counts', [(3, 5), (0, 2), (0, 0)])
@pytest.mark.parametrize('options', OPTIONS)
def test_training_never_needs_a_value(counts: tuple, options: dict, monkeypatch) -> None:
    """On the meta device tensors have shapes alone, so reading any value fails, in backward too."""
    ours, _ = head_pair(**options)
    maps = make_maps(2, SIZE, torch.Generator())
    leaves = [level.to('meta').requires_grad_() for kind in maps for level in kind]
    gts = [make_gts(count, SIZE, torch.Generator()).to('meta') for count in counts]
    metas = [make_meta(SIZE), make_meta((100, 160), (128, 160))]
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: nullcontext())  # knows no meta device
    losses = ours.loss_by_feat(leaves[:5], leaves[5:], gts, metas)
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    assert [each.shape for each in gradients] == [each.shape for each in leaves]


@pytest.mark.parametrize('options', [{}, dict(train_cfg=ALL_OPTIONS)], ids=['plain', 'all'])
def test_losses_compile_into_one_graph(options: dict) -> None:
    """fullgraph refuses whatever Python must decide by a value; the results stay the same."""
    ours, _ = head_pair(**options)
    generator = torch.Generator().manual_seed(0)
    maps = make_maps(2, SIZE, generator)
    gts = [make_gts(count, SIZE, generator) for count in (3, 5)]
    assert_compiles(ours, maps, gts, [make_meta(SIZE), make_meta((100, 160), (128, 160))])


@pytest.mark.parametrize('label', [-1, 8, 255])
def test_a_label_out_of_range_trains_no_class(label: int) -> None:
    ours, theirs = head_pair()
    generator = torch.Generator().manual_seed(0)
    maps = make_maps(1, SIZE, generator)
    gts = InstanceData(
        bboxes=torch.tensor([[20.0, 20.0, 90.0, 80.0]]), labels=torch.tensor([label])
    )
    values, gradients = losses_and_gradients(ours, maps, [gts], [make_meta(SIZE)])
    assert values['loss_bbox'] == values['loss_dfl'] == 0
    _, expected = losses_and_gradients(
        theirs, maps, [gts[torch.zeros(1, dtype=torch.bool)]], [make_meta(SIZE)]
    )
    for found, none in zip(gradients, expected):
        torch.testing.assert_close(found, none)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_trained_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    cls, edges = make_maps(2, SIZE, generator)
    cls = [level.to(dtype) for level in cls]
    gts = [make_gts(count, SIZE, generator) for count in (4, 6)]
    metas = [make_meta(SIZE)] * 2
    ours, _ = head_pair()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = losses_and_gradients(ours, (cls, edges), gts, metas)
    full = [level.float() for level in cls]
    expected = losses_and_gradients(ours, (full, edges), gts, metas)
    for name, value in expected[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-6)
    for half, whole in zip(found[1], expected[1]):
        torch.testing.assert_close(half.float(), whole, rtol=1e-2, atol=1e-5)


def test_training_step_under_autocast_is_finite() -> None:
    ours, _ = head_pair()
    features = [torch.randn(2, 16, *size) for size in [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]]
    generator = torch.Generator().manual_seed(0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = ours(features)
        assert outputs[0][0].dtype == torch.bfloat16
        gts = [make_gts(count, SIZE, generator) for count in (4, 0)]
        losses = ours.loss_by_feat(*outputs, gts, [make_meta(SIZE)] * 2)
        results = ours.predict_by_feat(*outputs, batch_img_metas=[make_meta(SIZE)] * 2)
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(each.scores.dtype == each.bboxes.dtype == torch.float32 for each in results)
    sum(losses.values()).backward()
    assert all(each.grad.isfinite().all() for each in ours.parameters())
    assert len(results) == 2


@pytest.mark.parametrize(
    'box',
    [
        (30.0, 30.0, 30.0, 60.0),
        (60.0, 60.0, 30.0, 30.0),
        (float('nan'), 0.0, 50.0, 50.0),
        (float('inf'), 0.0, 50.0, float('inf')),
        (-900.0, -900.0, -800.0, -800.0),
        (1e20, 1e20, 3e20, 3e20),
    ],
)
def test_a_broken_box_gives_no_nan(box: tuple) -> None:
    ours, _ = head_pair()
    generator = torch.Generator().manual_seed(0)
    maps = make_maps(1, SIZE, generator)
    gts = make_gts(3, SIZE, generator)
    broken = InstanceData(
        bboxes=torch.cat([torch.tensor([box]), gts.bboxes]),
        labels=torch.cat([torch.tensor([0]), gts.labels]),
    )
    alone = InstanceData(bboxes=torch.tensor([box]), labels=torch.tensor([0]))
    expected = losses_and_gradients(ours, maps, [gts], [make_meta(SIZE)])
    found = losses_and_gradients(ours, maps, [broken], [make_meta(SIZE)])
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1]):
        assert torch.equal(one, other)
    values, gradients = losses_and_gradients(ours, maps, [alone], [make_meta(SIZE)])
    assert values['loss_bbox'] == values['loss_dfl'] == 0
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(loss_cls=dict(type='FocalLoss')), 'QualityFocalLoss, not FocalLoss'),
        (dict(loss_cls=dict(activated=True)), 'activated=False'),
        (dict(loss_dfl=dict(type='L1Loss')), 'DistributionFocalLoss, not L1Loss'),
        (dict(bbox_coder=dict(type='DeltaXYWHBBoxCoder')), 'DistancePointBBoxCoder'),
        (dict(anchor_generator=dict(ratios=[0.5, 1.0])), 'one prior per cell'),
        (dict(anchor_generator=dict(strides=[(8, 16)] * 5)), 'same stride'),
        (
            dict(train_cfg=dict(sampler=dict(type='RandomSampler', num=8, pos_fraction=0.5))),
            'sampler',
        ),
    ],
)
def test_configs_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MODELS.build(head_config(True, **copy.deepcopy(changes)))


def test_defaults_are_the_papers() -> None:
    head = MODELS.build(dict(type='gfl_det.GFLHead', num_classes=80, in_channels=256))
    assert head.reg_max == 16
    assert head.loss_cls.beta == 2
    assert (head.loss_bbox.loss_weight, head.loss_dfl.loss_weight) == (2, 0.25)
    assert [x for x, _ in head.prior_generator.strides] == [8, 16, 32, 64, 128]


def test_no_background_channel_without_use_sigmoid() -> None:
    config = head_config(True)
    config.loss_cls.pop('use_sigmoid')
    head = MODELS.build(config)
    assert head.gfl_cls.out_channels == config.num_classes


def test_no_prior_inside_the_image() -> None:
    ours, _ = head_pair(train_cfg=dict(allowed_border=0))
    maps = make_maps(1, (64, 64), torch.Generator())
    meta = dict(make_meta((20, 20), (64, 64)), img_path='small.png')
    with pytest.raises(ConfigError, match=r'small\.png.*allowed_border=-1'):
        ours.loss_by_feat(*maps, [make_gts(1, (20, 20), torch.Generator())], [meta])


def test_a_fresh_head_scores_about_one_percent() -> None:
    """Its bias starts at the prior of 0.01, so that negatives do not drown the first steps."""
    head = MODELS.build(head_config(True))
    head.init_weights()
    scores = head([torch.randn(1, 16, 8, 8)] * 5)[0][0].sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.2)
