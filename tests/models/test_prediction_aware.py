"""Assigners that read predictions: mmdet's heads as witnesses, on the same predictions."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.dense_heads import RTMDetHead, TOODHead
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from gfl_det.models.heads import GFLHead, LDHead, NanoDetPlusHead
from gfl_det.ops import distribution
from gfl_det.ops.boxes import box_centres, distances_to_boxes

STRIDES = (8, 16, 32)
SIZES = [(12, 16), (6, 8), (3, 4)]
CLASSES, REG_MAX = 5, 7
ANCHORS = dict(
    type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=STRIDES
)
METAS = [dict(img_shape=shape, pad_shape=shape) for shape in ((96, 128), (80, 100))]
KINDS = ('DynamicSoftLabelAssigner', 'SimOTAAssigner', 'TaskAlignedAssigner')
SETTINGS = {kind: dict(type=kind) for kind in KINDS} | {KINDS[2]: dict(type=KINDS[2], topk=13)}


def make_head(kind: str, cls=GFLHead, **settings):
    cfg = ConfigDict(assigner=SETTINGS[kind], allowed_border=-1, pos_weight=-1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return cls(
            CLASSES,
            16,
            feat_channels=16,
            norm_cfg=None,
            reg_max=REG_MAX,
            anchor_generator=ANCHORS,
            train_cfg=cfg,
            **settings,
        )


def make_maps(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(2, channels, *size, generator=generator) * 2 for size in SIZES]
        for channels in (CLASSES, 4 * (REG_MAX + 1))
    ]


def make_gts(counts=(6, 3), seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 60
        side = torch.rand(count, 2, generator=generator) * 50 + 6
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        images.append(InstanceData(bboxes=torch.cat([corner, corner + side], 1), labels=labels))
    return images


def flat_predictions(head, maps):
    """Per prior logits, boxes, centres and strides by a loop over the levels."""
    logits, boxes, points = [], [], []
    for cls, edges, stride, priors in zip(
        *maps, STRIDES, head.prior_generator.grid_priors(SIZES, device='cpu')
    ):
        rows = edges.permute(0, 2, 3, 1).reshape(2, -1, 4, REG_MAX + 1)
        centres = box_centres(priors)
        logits.append(cls.permute(0, 2, 3, 1).reshape(2, -1, CLASSES))
        boxes.append(distances_to_boxes(centres, distribution.mean(rows) * stride))
        points.append(torch.cat([centres, torch.full_like(centres, stride)], 1))
    return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points)


def assigned_map(head, maps, gts):
    """Per image and prior: label or CLASSES, soft label, gt box; from our list of positives."""
    found = head.match(maps[0], gts, METAS, [None, None], maps[1])
    cells = [rows * columns for rows, columns in SIZES]
    first = torch.tensor([0, cells[0], cells[0] + cells[1]])
    prior = first[found.positives.level] + found.positives.cell
    place = found.positives.image, prior
    labels = torch.full((2, sum(cells)), CLASSES)
    labels[place] = found.labels[found.positives.gt]
    quality = torch.zeros(2, sum(cells))
    quality[place] = found.quality
    boxes = torch.zeros(2, sum(cells), 4)
    boxes[place] = found.boxes[found.positives.gt]
    return labels, quality, boxes


def inside(image: int):
    """Which priors count for an image: their cell begins before its padded shape ends."""
    height, width = METAS[image]['pad_shape']
    masks = []
    for (rows, columns), stride in zip(SIZES, STRIDES):
        row, column = torch.arange(rows)[:, None], torch.arange(columns)
        limits = -(-height // stride), -(-width // stride)
        masks.append(((row < limits[0]) & (column < limits[1])).flatten())
    return torch.cat(masks)


def test_dynamic_soft_labels_are_rtmdets():
    head, maps, gts = make_head(KINDS[0]), make_maps(), make_gts()
    with DefaultScope.overwrite_default_scope('mmdet'):
        witness = RTMDetHead(
            CLASSES,
            16,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=STRIDES),
            train_cfg=ConfigDict(assigner=SETTINGS[KINDS[0]], allowed_border=-1, pos_weight=-1),
        )
    logits, boxes, points = flat_predictions(head, maps)
    labels, quality, targets = assigned_map(head, maps, gts)
    for image in range(2):
        _, expected, _, expected_boxes, soft, _ = witness._get_targets_single(
            logits[image], boxes[image], points, inside(image), gts[image], METAS[image]
        )
        assert (expected < CLASSES).sum() > 3
        assert torch.equal(labels[image], expected)
        positive = expected < CLASSES
        torch.testing.assert_close(quality[image][positive], soft[positive])
        torch.testing.assert_close(targets[image][positive], expected_boxes[positive])


@pytest.mark.parametrize(('alpha', 'beta'), [(1, 6), (0.5, 2.0)])
def test_task_alignment_is_toods(alpha, beta):
    head, maps, gts = make_head(KINDS[2]), make_maps(1), make_gts(seed=1)
    head.train_cfg.update(alpha=alpha, beta=beta)
    with DefaultScope.overwrite_default_scope('mmdet'):
        witness = TOODHead(
            CLASSES,
            16,
            norm_cfg=None,
            anchor_type='anchor_based',
            anchor_generator=ANCHORS,
            initial_loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            train_cfg=ConfigDict(
                initial_epoch=0,
                initial_assigner=dict(type='ATSSAssigner', topk=9),
                assigner=SETTINGS[KINDS[2]],
                alpha=alpha,
                beta=beta,
                allowed_border=-1,
                pos_weight=-1,
            ),
        )
    logits, boxes, _ = flat_predictions(head, maps)
    priors = torch.cat(head.prior_generator.grid_priors(SIZES, device='cpu'))
    labels, quality, targets = assigned_map(head, maps, gts)
    for image in range(2):
        _, expected, _, expected_boxes, soft = witness._get_targets_single(
            logits[image].sigmoid(), boxes[image], priors, inside(image), gts[image], METAS[image]
        )
        assert (expected < CLASSES).sum() > 3
        assert torch.equal(labels[image], expected)
        torch.testing.assert_close(quality[image], soft)
        positive = expected < CLASSES
        torch.testing.assert_close(targets[image][positive], expected_boxes[positive])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('counts', [(6, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize('cls', [GFLHead, LDHead, NanoDetPlusHead])
def test_heads_train_on_full_and_empty_images(cls, counts, kind):
    settings = {} if cls is NanoDetPlusHead else dict(stacked_convs=1)
    head = make_head(kind, cls, **settings)
    features = [torch.randn(2, 16, *size) for size in SIZES]
    maps = head(features)
    extra = [[edges.detach() for edges in maps[1]]] if cls is LDHead else []
    losses = head.loss_by_feat(*maps, make_gts(counts), METAS, *extra)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(each.grad is not None and each.grad.isfinite().all() for each in head.parameters())
    assert (losses['loss_bbox'] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize('kind', KINDS)
def test_gts_of_unknown_classes_train_nothing(kind):
    head, maps, gts = make_head(kind), make_maps(), make_gts()
    without = [InstanceData(bboxes=each.bboxes[1:], labels=each.labels[1:]) for each in gts]
    for each in gts:
        each.labels[0] = CLASSES
    with_unknown, known = (assigned_map(head, maps, each) for each in (gts, without))
    assert all(torch.equal(*pair) for pair in zip(with_unknown, known))


def test_the_soft_label_is_the_target_of_quality_focal_loss():
    head, maps, gts = make_head(KINDS[2]), make_maps(2), make_gts(seed=2)
    for level in maps[0]:
        level.requires_grad_()
    found = head.match(maps[0], gts, METAS, [None, None], maps[1])
    terms = head.loss_terms(*maps, found)
    assert torch.equal(terms.quality, found.quality)
    loss = head.losses(maps[0], found, terms)['loss_cls']
    total = torch.zeros(())
    labels, quality, _ = assigned_map(head, maps, gts)
    logits, *_ = flat_predictions(head, maps)
    for image in range(2):
        for prior in inside(image).nonzero().squeeze(1).tolist():
            target = torch.zeros(CLASSES)
            if labels[image, prior] < CLASSES:
                target[labels[image, prior]] = quality[image, prior]
            score = logits[image, prior].sigmoid()
            entropy = torch.nn.functional.binary_cross_entropy(score, target, reduction='none')
            total = total + (entropy * (target - score).abs() ** 2).sum()
    torch.testing.assert_close(loss, total / terms.num_positives, rtol=1e-4, atol=1e-4)
