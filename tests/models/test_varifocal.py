"""Varifocal Loss: its equation, mmdet's class, and the same head trained with it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from mmdet.models.losses import VarifocalLoss as MMDetVarifocalLoss
from mmdet.registry import MODELS
from torch import nn

from gfl_det.models.heads import loss as class_loss
from gfl_det.models.losses import VarifocalLoss
from gfl_det.models.losses.functional import varifocal_gradient, varifocal_loss
from gfl_det.models.losses.score_losses import VarifocalLoss as Shell
from tests.helpers.compiling import assert_compiles
from tests.helpers.heads import head_config, losses_and_gradients, make_gts, make_maps, make_meta

SIZE, INSIDE = (192, 256), (150, 200)


def cases(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 8 classes, extreme ones among them, and targets of which a few are not 0."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 8, generator=generator, dtype=torch.float64) * 4
    logits[0] = torch.tensor([-90.0, 90, -20, 20, 0, -1, 1, 3])
    targets = torch.rand(rows, 8, generator=generator, dtype=torch.float64)
    targets = targets * (torch.rand(rows, 8, generator=generator) < 0.2)
    targets[0] = torch.tensor([0.5, 0.5, 0, 0, 1, 1, 0, 0.2])
    return logits, targets


def slow(logit: float, quality: float, alpha: float, gamma: float, iou_weighted: bool) -> float:
    score = 1 / (1 + math.exp(-logit))
    if quality > 0:
        entropy = -(quality * math.log(score) + (1 - quality) * math.log(1 - score))
        return (quality if iou_weighted else 1) * entropy
    return -alpha * score**gamma * math.log(1 - score)


@pytest.mark.parametrize('iou_weighted', [True, False])
@pytest.mark.parametrize(('alpha', 'gamma'), [(0.75, 2.0), (1.0, 0.0), (0.3, 1.5)])
class TestEquation:
    def test_equals_the_slow_oracle(self, alpha, gamma, iou_weighted):
        for logit in (-3.0, -0.5, 0.0, 2.0):
            for quality in (0.0, 0.1, 0.5, 1.0):
                pair = torch.tensor([logit, quality], dtype=torch.float64)
                found = varifocal_loss(*pair, alpha, gamma, iou_weighted)
                expected = slow(logit, quality, alpha, gamma, iou_weighted)
                assert float(found) == pytest.approx(expected, rel=1e-12)

    def test_the_gradient_is_autograds(self, alpha, gamma, iou_weighted):
        logits, targets = cases()
        logits.requires_grad_()
        loss = varifocal_loss(logits, targets, alpha, gamma, iou_weighted).sum()
        (expected,) = torch.autograd.grad(loss, logits)
        found = varifocal_gradient(logits.detach(), targets, alpha, gamma, iou_weighted)
        torch.testing.assert_close(found, expected)
        assert found.isfinite().all()

    @pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
    @pytest.mark.parametrize('with_weight', [False, True])
    def test_value_and_gradient_are_mmdets(
        self, alpha, gamma, iou_weighted, reduction, with_weight
    ):
        options = dict(alpha=alpha, gamma=gamma, iou_weighted=iou_weighted, loss_weight=1.7)
        logits, targets = cases()
        weight = torch.rand(logits.shape).double() if with_weight else None
        divisors = [None, 3.5] if reduction == 'mean' else [None]
        for divisor in divisors:
            results = []
            for kind in (VarifocalLoss, MMDetVarifocalLoss):
                leaf = logits.clone().requires_grad_()
                loss = kind(reduction=reduction, **options)(leaf, targets, weight, divisor)
                results.append((loss, *torch.autograd.grad(loss.sum(), leaf)))
            for ours, theirs in zip(*results):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_labels_with_qualities_are_targets_of_all_classes():
    logits, _ = cases(5)
    labels, quality = torch.tensor([2, 8, 0, 8, 7]), torch.tensor([0.3, 0.9, 0.0, 0.2, 1.0])
    targets = torch.zeros_like(logits)
    targets[0, 2], targets[4, 7] = 0.3, 1.0  # row 2 has quality 0: negative, as in mmdet
    loss = VarifocalLoss()
    torch.testing.assert_close(loss(logits, (labels, quality)), loss(logits, targets))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match='use_sigmoid'):
        VarifocalLoss(use_sigmoid=False)
    with pytest.raises(ValueError, match='at least 0'):
        VarifocalLoss(gamma=-1)
    with pytest.raises(ValueError, match='at least 0'):
        VarifocalLoss(alpha=-0.1)
    assert VarifocalLoss(alpha=0, gamma=0).alpha == 0
    assert Shell is VarifocalLoss is MODELS.get('gfl_det.VarifocalLoss')


def head(options: dict, **train: Any) -> nn.Module:
    config = head_config(True)
    config['loss_cls'] = dict(type='gfl_det.VarifocalLoss', **options)
    config['train_cfg'].update(train)
    return MODELS.build(config)


def batch(counts: tuple) -> tuple:
    generator = torch.Generator().manual_seed(0)
    maps = make_maps(len(counts), SIZE, generator)
    gts = [make_gts(count, INSIDE, generator) for count in counts]
    for each in gts:  # one that coarse levels see
        each.bboxes[:1] = torch.tensor([2.0, 1, 190, 148])
    shapes = [INSIDE if index else SIZE for index in range(len(counts))]
    return maps, gts, [make_meta(shape) for shape in shapes]


class Dense(nn.Module):
    """mmdet's loss on all rows, in the place of the sum over maps."""

    def __init__(self, options: dict) -> None:
        super().__init__()
        self.loss = MMDetVarifocalLoss(**options)

    def __call__(self, maps, assigned, terms, pos_weight):
        rows = class_loss.class_rows(maps, assigned, terms, pos_weight)
        dense = torch.zeros_like(rows.logits)
        for row in (rows.labels < rows.logits.shape[1]).nonzero()[:, 0].tolist():
            dense[row, rows.labels[row]] = rows.quality[row]
        weight = rows.weight[:, None].expand_as(dense)
        return self.loss(rows.logits, dense, weight, avg_factor=terms.num_positives)


@pytest.mark.parametrize('counts', [(5, 0, 3), (0, 0, 0), (60, 1, 30)])
@pytest.mark.parametrize('train', [{}, dict(pos_weight=2.5)])
@pytest.mark.parametrize('options', [{}, dict(alpha=0.4, gamma=1.5, iou_weighted=False)])
def test_the_heads_sum_is_mmdets_loss_of_all_rows(counts, train, options, monkeypatch):
    options = dict(loss_weight=1.3, **options)
    data, ours = batch(counts), head(options, **train)
    found, gradients = losses_and_gradients(ours, *copy.deepcopy(data))
    dense = Dense(options)
    monkeypatch.setattr('gfl_det.models.heads.gfl_head.class_loss', lambda _, *rest: dense(*rest))
    wanted, others = losses_and_gradients(ours, *data)
    assert found == pytest.approx(wanted, rel=1e-5)
    largest = max(float(each.abs().max()) for each in others)
    for one, other in zip(gradients, others):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * largest)


def test_the_head_never_lays_out_rows(monkeypatch):
    """What makes the sum as cheap as that of Quality Focal Loss: maps are taken as they lie."""
    monkeypatch.delattr(class_loss, 'class_rows')
    maps, gts, metas = batch((5, 3))
    losses = head({}).loss_by_feat(*maps, gts, metas)
    assert losses['loss_cls'] > 0
    config = head_config(True, loss_cls=dict(type='gfl_det.BrierLoss'))
    with pytest.raises(NameError, match='class_rows'):
        MODELS.build(config).loss_by_feat(*maps, gts, metas)


def test_the_loss_compiles_into_one_graph():
    assert_compiles(head({}), *batch((4, 2)))
