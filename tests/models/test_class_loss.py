"""GFLHead with the losses of the calibration papers; its own sum is the witness."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.models.losses import DistributionFocalLoss as MMDetDFL
from mmdet.models.losses import QualityFocalLoss as MMDetQFL
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from gfl_det.errors import ConfigError
from gfl_det.models.heads.loss import excluded_cells
from gfl_det.models.losses import DistributionFocalLoss, QualityFocalLoss, VarifocalLoss
from tests.helpers.heads import head_config, losses_and_gradients, make_gts, make_maps, make_meta

QFL = dict(type='gfl_det.QualityFocalLoss', use_sigmoid=True, loss_weight=1.3)
SAME = dict(type='gfl_det.FocalLoss', alpha=None, loss_weight=1.3)  # by another path
SIZE, INSIDE = (192, 256), (150, 200)


def head(loss: dict, **train: Any) -> torch.nn.Module:
    config = head_config(True)
    config['loss_cls'] = loss
    config['train_cfg'].update(train)
    torch.manual_seed(0)
    return MODELS.build(config)


def batch(counts: tuple = (5, 0, 3), padded: bool = True) -> tuple:
    generator = torch.Generator().manual_seed(0)
    maps = make_maps(len(counts), SIZE, generator)
    gts = [make_gts(count, INSIDE, generator) for count in counts]
    for each in gts:  # one that coarse levels see
        each.bboxes[:1] = torch.tensor([2.0, 1, 190, 148])
    shapes = [INSIDE if padded and index else SIZE for index in range(len(counts))]
    return maps, gts, [make_meta(shape) for shape in shapes]


@pytest.mark.parametrize('counts', [(5, 0, 3), (0, 0, 0), (60, 1, 30)])
@pytest.mark.parametrize('train', [{}, dict(pos_weight=2.5)])
def test_focal_loss_without_alpha_is_quality_focal_loss(counts: tuple, train: dict) -> None:
    data = batch(counts)
    wanted, gradients = losses_and_gradients(head(QFL, **train), *data)
    found, others = losses_and_gradients(head(SAME, **train), *data)
    assert found == pytest.approx(wanted, rel=1e-5)
    for one, other in zip(gradients, others):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)


def test_cells_in_ignored_gts_do_not_count() -> None:
    maps, gts, metas = batch(padded=False)
    ignored = [
        InstanceData(bboxes=torch.tensor([[0.0, 0, 60, 60]]), labels=torch.tensor([0])) for _ in gts
    ]
    train = dict(assigner=dict(type='gfl_det.ATSSAssigner', topk=9, ignore_iof_thr=0.5))
    wanted, gradients = losses_and_gradients(head(QFL, **train), maps, gts, metas, ignored)
    without, _ = losses_and_gradients(head(QFL, **train), maps, gts, metas)
    assert abs(without['loss_cls'] - wanted['loss_cls']) > 1e-3
    found, others = losses_and_gradients(head(SAME, **train), maps, gts, metas, ignored)
    assert found == pytest.approx(wanted, rel=1e-5)
    for one, other in zip(gradients, others):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='gfl_det.FocalLoss', alpha=None, gammas=(5, 3)),
        dict(type='gfl_det.InverseFocalLoss'),
        dict(type='gfl_det.BrierLoss'),
        dict(type='gfl_det.LabelSmoothingLoss'),
        dict(type='gfl_det.MMCELoss'),
    ],
)
@pytest.mark.parametrize('counts', [(5, 0, 3), (0, 0, 0)])
def test_the_head_trains_with_each(loss: dict, counts: tuple) -> None:
    data = batch(counts)
    found, gradients = losses_and_gradients(head(loss), *data)
    usual, _ = losses_and_gradients(head(QFL), *data)
    assert found['loss_cls'] > 0
    assert found['loss_bbox'] == usual['loss_bbox']
    assert found['loss_dfl'] == usual['loss_dfl']
    assert all(torch.isfinite(each).all() for each in gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='gfl_det.BrierLoss', use_sigmoid=False),
        dict(type='gfl_det.BrierLoss', reduction='sum'),
    ],
)
def test_losses_that_do_not_fit_are_refused(loss: dict) -> None:
    with pytest.raises(ConfigError, match='use_sigmoid=True and reduction="mean"'):
        head(loss)


def test_a_weight_of_0_for_positives_means_1() -> None:
    """As in mmdet, where 0 and below mean 1."""
    data = batch((3, 5))
    for loss in (QFL, SAME):
        wanted, _ = losses_and_gradients(head(loss), *data)
        assert losses_and_gradients(head(loss, pos_weight=0), *data)[0] == wanted
        assert losses_and_gradients(head(loss, pos_weight=2.0), *data)[0] != wanted


def test_a_pyramid_of_one_level() -> None:
    maps, gts, metas = batch()
    config = head_config(True, anchor_generator=dict(strides=[8]))
    found = []
    for loss in (QFL, SAME):
        config['loss_cls'] = loss
        one = tuple(kind[:1] for kind in maps)
        found.append(losses_and_gradients(MODELS.build(config), one, gts, metas)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_cells_outside_the_valid_rectangles_are_excluded() -> None:
    """A level of 2 x 3 cells, of which the second image lacks a column; all count on the other."""
    rectangles = [[(0, 0, 3, 2), (0, 0, 2, 1)], [(1, 0, 3, 2), (0, 0, 2, 1)]]
    grid = SimpleNamespace(sizes=[(2, 3), (1, 2)], rectangles=rectangles, device='cpu')
    fine, coarse = excluded_cells(SimpleNamespace(grid=grid, ignored=None))
    assert fine.int().tolist() == [[[[0, 0, 0], [0, 0, 0]]], [[[1, 0, 0], [1, 0, 0]]]]
    assert coarse is None


class OursOfAnotherBeta(QualityFocalLoss):
    def __init__(self) -> None:
        super().__init__(beta=1.5, loss_weight=0.7)


class TheirsOfAnotherBeta(MMDetQFL):
    def __init__(self) -> None:
        super().__init__(beta=1.5, loss_weight=0.7)


class OurEdges(DistributionFocalLoss):
    """Another name."""


class TheirEdges(MMDetDFL):
    """Another name."""


class OurVarifocal(VarifocalLoss):
    """Another name."""


@pytest.mark.parametrize(
    ('classes', 'edges'), [(OursOfAnotherBeta, OurEdges), (TheirsOfAnotherBeta, TheirEdges)]
)
def test_subclasses_are_read_for_their_hyper_parameters(classes: type, edges: type) -> None:
    data = batch((3, 5))
    config = head_config(True)
    config['loss_cls'] = dict(QFL, beta=1.5, loss_weight=0.7)
    config['loss_dfl'] = dict(type='gfl_det.DistributionFocalLoss', loss_weight=0.4)
    wanted, _ = losses_and_gradients(MODELS.build(config), *data)
    config['loss_cls'] = dict(type=classes)
    config['loss_dfl'] = dict(type=edges, loss_weight=0.4)
    assert losses_and_gradients(MODELS.build(config), *data)[0] == wanted
    varifocal = losses_and_gradients(head(dict(type=OurVarifocal)), *data)[0]
    assert varifocal == losses_and_gradients(head(dict(type=VarifocalLoss)), *data)[0]
