"""MMDetection's other heads on our losses and our assigner: losses and gradients stay theirs."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from torch import Tensor

import gfl_det
from tests.helpers.heads import NUM_CLASSES, feature_sizes, make_gts, make_maps, make_meta
from tests.helpers.oracles import STRIDES

SIZE = (128, 160)
ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=8,
    scales_per_octave=1,
    strides=list(STRIDES),
)
COMMON = dict(num_classes=NUM_CLASSES, in_channels=16, stacked_convs=1, feat_channels=32)


def head_of(name: str, ours: bool) -> torch.nn.Module:
    """A head as its zoo config has it, narrower; ours: with our losses and assigner."""
    prefix = 'gfl_det.' if ours else ''
    assigner = dict(type=f'{prefix}ATSSAssigner', topk=9)
    train = dict(assigner=assigner, allowed_border=-1, pos_weight=-1, debug=False)
    quality = dict(type=f'{prefix}QualityFocalLoss', use_sigmoid=True, beta=2.0)
    settings: dict = dict(
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0), anchor_generator=ANCHORS
    )
    if name in ('ATSSHead', 'DDODHead'):
        coder = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
        focal = dict(type='FocalLoss', use_sigmoid=True)
        settings.update(bbox_coder=coder, reg_decoded_bbox=True, loss_cls=focal)
        if name == 'DDODHead':  # its cost is score^(1 - alpha) * IoU^alpha
            train.update(assigner=dict(assigner, alpha=0.8))
            train.update(reg_assigner=dict(assigner, alpha=0.5))
            settings.update(loss_iou=dict(type='CrossEntropyLoss', use_sigmoid=True))
    elif name == 'TOODHead':
        later = dict(type='TaskAlignedAssigner', topk=13)
        train = dict(train, initial_epoch=4, initial_assigner=assigner, assigner=later)
        train.update(alpha=1, beta=6)
        focal = dict(type='FocalLoss', use_sigmoid=True, activated=True)
        settings.update(initial_loss_cls=focal, loss_cls=dict(quality, activated=True))
        settings.update(num_dcn=0, anchor_type='anchor_free')
    elif name == 'VFNetHead':
        settings.pop('anchor_generator')
        varifocal = dict(type='VarifocalLoss', use_sigmoid=True)
        settings.update(loss_cls=varifocal, loss_bbox_refine=dict(type='GIoULoss'))
        settings.update(strides=list(STRIDES), dcn_on_last_conv=False, use_atss=True)
    else:
        edges = dict(type=f'{prefix}DistributionFocalLoss', loss_weight=0.25)
        distil = dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10)
        settings.update(loss_cls=quality, loss_dfl=edges, loss_ld=distil, reg_max=16)
    return MODELS.build(ConfigDict(type=name, train_cfg=train, **COMMON, **settings))


def outputs_of(name: str) -> list[list[Tensor]]:
    """What the head's ``forward`` hands to its losses, as random values of the right kind."""
    generator = torch.Generator().manual_seed(0)
    logits, edges = make_maps(2, SIZE, generator)

    def noise(channels: int) -> list[Tensor]:
        sizes = feature_sizes(*SIZE)
        return [torch.randn(2, channels, *size, generator=generator) for size in sizes]

    if name in ('ATSSHead', 'DDODHead'):
        return [logits, [each * 0.1 for each in noise(4)], noise(1)]
    if name == 'VFNetHead':
        sides = [[each.exp() * stride for each, stride in zip(noise(4), STRIDES)] for _ in 'ab']
        return [logits, *sides]
    if name == 'LDHead':
        return [logits, edges]
    boxes = []  # TOOD decodes in forward: xyxy in strides
    for each in noise(4):
        y, x = torch.meshgrid(*(torch.arange(side) for side in each.shape[2:]), indexing='ij')
        centre, half = torch.stack([x, y, x, y]), each.abs() + 0.5
        boxes.append(centre + half * torch.tensor([-1, -1, 1, 1])[:, None, None])
    return [[each.sigmoid() for each in logits], boxes]


def losses_and_gradients(head: torch.nn.Module, name: str) -> tuple[dict, list[Tensor | None]]:
    kinds = [[each.clone().requires_grad_() for each in kind] for kind in outputs_of(name)]
    generator = torch.Generator().manual_seed(1)
    gts = [make_gts(count, SIZE, generator) for count in (4, 6)]
    metas = [make_meta(SIZE)] * 2
    # The teacher's edges stand before the metas' successor, the ignored gt boxes.
    extra = [make_maps(2, SIZE, generator)[1]] if name == 'LDHead' else []
    losses = head.loss_by_feat(*kinds, gts, metas, *extra)
    totals = {
        key: sum(value) if isinstance(value, list) else value for key, value in losses.items()
    }
    sum(totals.values()).sum().backward()
    return totals, [each.grad for kind in kinds for each in kind]


@pytest.mark.parametrize(
    ('name', 'epoch'),
    [
        ('ATSSHead', 0),
        ('DDODHead', 0),
        ('TOODHead', 0),
        ('TOODHead', 4),
        ('VFNetHead', 0),
        ('LDHead', 0),
    ],
)
def test_losses_and_gradients_stay(name: str, epoch: int) -> None:
    """TOOD assigns by ATSS in its first epochs, and by task alignment with QFL afterwards."""
    MessageHub.get_current_instance().update_info('epoch', epoch)
    theirs, ours = head_of(name, ours=False), head_of(name, ours=True)
    assigner = ours.initial_assigner if name == 'TOODHead' else ours.assigner
    assert type(assigner) is gfl_det.models.assigners.ATSSAssigner
    if name in ('TOODHead', 'LDHead'):
        assert type(ours.loss_cls) is gfl_det.models.losses.QualityFocalLoss
    (found, gradients), (expected, slopes) = (
        losses_and_gradients(head, name) for head in (ours, theirs)
    )
    assert found.keys() == expected.keys()
    assert all(value.detach().sum() > 0 for value in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
    for one, other in zip(gradients, slopes):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
