"""Losses, gradients, detections and weights are those of mmdet's GFLHead."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import InstanceData

from tests.helpers.heads import (
    head_pair,
    losses_and_gradients,
    make_gts,
    make_maps,
    make_meta,
)

# name: (batch's padded size, per image (img_shape, pad_shape, number of gt boxes))
CASES = {
    'full images': ((256, 320), [((256, 320), (256, 320), 5), ((256, 320), (256, 320), 9)]),
    'different sizes': ((256, 320), [((200, 310), (224, 320), 6), ((256, 170), (256, 192), 4)]),
    'one image without gt boxes': (
        (160, 160),
        [((160, 160), (160, 160), 0), ((160, 150), (160, 160), 7)],
    ),
    'no gt boxes at all': ((160, 160), [((160, 160), (160, 160), 0)] * 2),
    '300 gt boxes': ((480, 640), [((480, 640), (480, 640), 300), ((470, 630), (480, 640), 40)]),
    'smaller than the coarsest stride': (
        (64, 96),
        [((64, 96), (64, 96), 3), ((40, 50), (64, 64), 2)],
    ),
    'one cell a level': ((8, 8), [((8, 8), (8, 8), 1)]),
}
TRAIN_OPTIONS = {
    'defaults': {},
    'pos_weight': dict(train_cfg=dict(pos_weight=2.5)),
    'allowed_border': dict(train_cfg=dict(allowed_border=40)),
    'beta 1.5': dict(loss_cls=dict(beta=1.5, loss_weight=0.7)),
    'topk 5': dict(train_cfg=dict(assigner=dict(topk=5))),
    'reg_max 7': dict(reg_max=7),
    'topk 1': dict(train_cfg=dict(assigner=dict(topk=1))),
    'no border': dict(train_cfg=dict(allowed_border=0)),
    'CIoU': dict(loss_bbox=dict(type='CIoULoss', loss_weight=1.5)),
    'no norm': dict(norm_cfg=None),
    'other anchors': dict(anchor_generator=dict(octave_base_scale=6, center_offset=0.5)),
}


def make_batch(case: str, seed: int = 0, **maps):
    size, images = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    logits = make_maps(len(images), size, generator, **maps)
    gts = [make_gts(count, shape, generator) for shape, _, count in images]
    return logits, gts, [make_meta(shape, pad) for shape, pad, _ in images]


def assert_same(found: tuple, expected: tuple) -> None:
    for name, value in expected[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    for ours, theirs in zip(found[1], expected[1]):
        largest = float(torch.cat([each.flatten() for each in expected[1]]).abs().max())
        assert float((ours - theirs).abs().max()) <= 1e-4 * max(largest, 1e-12)


@pytest.mark.parametrize('case', CASES)
def test_losses_and_gradients(case: str) -> None:
    for seed in range(3):
        batch = make_batch(case, seed)
        assert_same(*(losses_and_gradients(head, *batch) for head in head_pair()))


@pytest.mark.parametrize('option', TRAIN_OPTIONS)
def test_losses_and_gradients_with(option: str) -> None:
    changes = TRAIN_OPTIONS[option]
    for case in ('different sizes', 'no gt boxes at all'):
        batch = make_batch(case, num_bins=changes.get('reg_max', 16) + 1)
        heads = head_pair(**changes)
        assert_same(*(losses_and_gradients(head, *batch) for head in heads))


def test_ignored_gts() -> None:
    generator = torch.Generator().manual_seed(5)
    logits, gts, metas = make_batch('different sizes')
    ignored = [make_gts(4, (200, 200), generator), None]
    heads = head_pair(train_cfg=dict(assigner=dict(ignore_iof_thr=0.3)))
    found, expected = (losses_and_gradients(head, logits, gts, metas, ignored) for head in heads)
    assert_same(found, expected)
    without = losses_and_gradients(heads[0], logits, gts, metas)
    assert without[0]['loss_cls'] != found[0]['loss_cls']


def test_ignored_gts_beside_a_border() -> None:
    """One image has ignored gt boxes and one has none; the coarsest level has no prior inside."""
    generator = torch.Generator().manual_seed(5)
    logits, gts, metas = make_batch('full images')
    heads = head_pair(train_cfg=dict(allowed_border=0, assigner=dict(ignore_iof_thr=0.3)))
    for ignored in ([make_gts(4, (200, 200), generator), None], [None, None]):
        assert_same(*(losses_and_gradients(head, logits, gts, metas, ignored) for head in heads))


def test_boxes_of_a_box_type() -> None:
    from mmdet.structures.bbox import HorizontalBoxes

    generator = torch.Generator().manual_seed(5)
    logits, gts, metas = make_batch('full images')
    ours, _ = head_pair(train_cfg=dict(assigner=dict(ignore_iof_thr=0.3)))
    for ignored in ([make_gts(4, (200, 200), generator), None], [None, None]):
        plain = losses_and_gradients(ours, logits, gts, metas, ignored)
        typed = [
            [
                each and InstanceData(bboxes=HorizontalBoxes(each.bboxes), labels=each.labels)
                for each in kind
            ]
            for kind in (gts, ignored)
        ]
        assert losses_and_gradients(ours, logits, typed[0], metas, typed[1])[0] == plain[0]


def test_another_assigner_takes_the_general_path() -> None:
    batch = make_batch('different sizes')
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    ours, theirs = head_pair()
    from mmdet.registry import TASK_UTILS

    class Adapter:
        """MaxIoUAssigner behind the signature of ATSS."""

        inner = TASK_UTILS.build(assigner)

        def assign(self, pred_instances, num_level_priors, gt_instances, gt_instances_ignore=None):
            return self.inner.assign(pred_instances, gt_instances, gt_instances_ignore)

    ours.assigner = theirs.assigner = Adapter()
    assert_same(*(losses_and_gradients(head, *batch) for head in (ours, theirs)))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_memory_layout_changes_nothing(layout: torch.memory_format) -> None:
    logits, gts, metas = make_batch('different sizes')
    laid = tuple([level.contiguous(memory_format=layout) for level in kind] for kind in logits)
    heads = head_pair()
    found = losses_and_gradients(heads[0], laid, gts, metas)
    assert_same(found, losses_and_gradients(heads[1], logits, gts, metas))


def assert_same_detections(found: InstanceData, expected: InstanceData, image_size: float) -> None:
    assert len(found) == len(expected)
    # Detections of one score may change places: compare in order of (score, label, box).
    rows = []
    for each in (found, expected):
        order = sorted(
            range(len(each)),
            key=lambda i: (
                -round(float(each.scores[i]), 5),
                int(each.labels[i]),
                *each.bboxes[i].round().tolist(),
            ),
        )
        rows.append(each[torch.tensor(order, dtype=torch.long)])
    assert torch.equal(rows[0].labels, rows[1].labels)
    torch.testing.assert_close(rows[0].scores, rows[1].scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        rows[0].bboxes, rows[1].bboxes, rtol=0, atol=1e-6 * image_size + 1e-3
    )


TEST_OPTIONS = {
    'defaults': {},
    'class-agnostic': dict(nms=dict(class_agnostic=True)),
    'soft NMS': dict(nms=dict(type='soft_nms', min_score=0.05)),
    'few': dict(max_per_img=10, nms_pre=50),
    'large boxes only': dict(min_bbox_size=20),
    'any size': dict(min_bbox_size=-1),
    'high threshold': dict(score_thr=0.5),
    'every score': dict(score_thr=0.0, nms_pre=60),
    'no score': dict(score_thr=1.0),
    'class by class': dict(nms=dict(split_thr=20)),
    'tight NMS': dict(nms=dict(iou_threshold=0.05)),
}


@pytest.mark.parametrize('option', TEST_OPTIONS)
@pytest.mark.parametrize('bias', [-6.0, -3.0, 0.0])
def test_detections_with(option: str, bias: float) -> None:
    size = (256, 320)
    metas = [make_meta((250, 320), size, 0.8), make_meta((200, 300), size, 1.7)]
    heads = head_pair(test_cfg=TEST_OPTIONS[option])
    for seed in range(2):
        maps = make_maps(2, size, torch.Generator().manual_seed(seed), bias)
        for rescale in (False, True):
            found, expected = (
                head.predict_by_feat(*maps, batch_img_metas=metas, rescale=rescale)
                for head in heads
            )
            for ours, theirs in zip(found, expected):
                assert_same_detections(ours, theirs, 400)


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_class_agnostic_nms_stays_so_beyond_split_thr(kind: str) -> None:
    """Where mmcv suppresses class by class from ``split_thr`` boxes on."""
    size = (256, 320)
    maps = make_maps(2, size, torch.Generator().manual_seed(0), -3.0)
    metas = [make_meta((250, 320), size, 0.8), make_meta((200, 300), size, 1.7)]
    nms = dict(type=kind, class_agnostic=True, iou_threshold=0.6)
    few, many = (
        head_pair(test_cfg=dict(nms={**nms, 'split_thr': count}))[0] for count in (20, 10**6)
    )
    found, expected = (head.predict_by_feat(*maps, batch_img_metas=metas) for head in (few, many))
    for one, other in zip(found, expected):
        assert len(one) > 20
        assert torch.equal(one.bboxes, other.bboxes)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize('bias', [-30.0, -3.0])
def test_detections_without_nms(bias: float) -> None:
    size = (128, 160)
    maps = make_maps(2, size, torch.Generator().manual_seed(0), bias)
    metas = [make_meta((128, 150), size)] * 2
    found, expected = (
        head.predict_by_feat(*maps, batch_img_metas=metas, with_nms=False) for head in head_pair()
    )
    for ours, theirs in zip(found, expected):
        assert_same_detections(ours, theirs, 160)


def test_proposal_config_and_unclipped_boxes() -> None:
    size = (128, 160)
    maps = make_maps(1, size, torch.Generator().manual_seed(0), -2.0)
    coder = dict(type='DistancePointBBoxCoder', clip_border=False)
    heads = head_pair(bbox_coder=coder)
    config = heads[0].test_cfg.copy()
    config.update(score_thr=0.2, max_per_img=30)
    found, expected = (
        head.predict_by_feat(*maps, batch_img_metas=[make_meta(size)], cfg=config) for head in heads
    )
    assert float(found[0].bboxes.min()) < 0
    assert_same_detections(found[0], expected[0], 160)


def test_the_whole_head_from_features() -> None:
    """forward, loss and gradients of all parameters; predict."""
    from mmdet.structures import DetDataSample

    generator = torch.Generator().manual_seed(0)
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    features = [torch.randn(2, 16, *size, generator=generator) for size in sizes]
    samples = []
    for count in (3, 0):
        sample = DetDataSample(metainfo=make_meta((128, 160)))
        sample.gt_instances = make_gts(count, (128, 160), generator)
        samples.append(sample)
    heads = head_pair(stacked_convs=2)
    gradients = []
    for head in heads:
        losses = head.loss(features, samples)
        sum(
            value if isinstance(value, torch.Tensor) else sum(value) for value in losses.values()
        ).backward()
        gradients.append({name: each.grad for name, each in head.named_parameters()})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-3, atol=1e-5)
    assert len(heads[0].predict(tuple(features), samples)) == 2
    losses, results = heads[0].loss_and_predict(tuple(features), samples)
    assert len(results) == 2
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl'}


def test_no_gts_leave_defined_gradients() -> None:
    ours, _ = head_pair()
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    outputs = ours([torch.randn(1, 16, *size) for size in sizes])
    empty = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    losses = ours.loss_by_feat(*outputs, [empty], [make_meta((128, 160))])
    assert float(losses['loss_bbox']) == float(losses['loss_dfl']) == 0
    sum(losses.values()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in ours.parameters())
