"""Parts of NanoDet-Plus: published sizes, an obvious oracle, training, uncertainty."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

import gfl_det
from gfl_det.errors import ConfigError
from gfl_det.models.backbones import ShuffleNetV2
from gfl_det.models.backbones.shufflenet_v2 import channel_shuffle
from gfl_det.models.heads import NanoDetPlusHead
from gfl_det.models.necks import GhostPAN
from tests.helpers.ncnn_files import random_detector

METAS = [dict(img_shape=(96, 128), pad_shape=(96, 128), scale_factor=(1.0, 1.0))]


@pytest.fixture(scope='module')
def detector():
    return random_detector()


def logits(detector, size=(96, 128)):
    return detector.bbox_head(detector.neck(detector.backbone(torch.randn(1, 3, *size))))


def test_the_release_has_so_many_convolutions_and_weights(detector):
    convolutions = [each for each in detector.modules() if isinstance(each, nn.Conv2d)]
    assert len(convolutions) == 110
    assert sum(each.weight.numel() for each in convolutions) == 1_174_320


def test_backbone_has_torchvisions_names():
    keys = ShuffleNetV2().state_dict().keys()
    expected = {
        'conv1.0.weight': (24, 3, 3, 3),
        'conv1.1.bias': (24,),
        'stage2.0.branch1.0.weight': (24, 1, 3, 3),
        'stage2.0.branch1.3.weight': (58,),
        'stage3.7.branch2.5.weight': (116, 116, 1, 1),
        'stage4.3.branch2.6.running_var': (232,),
    }
    state = ShuffleNetV2().state_dict()
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert not any(key.startswith('stage2.1.branch1') for key in keys)  # passes half on as it is
    assert len({key.split('.')[0] for key in keys}) == 4


@pytest.mark.parametrize('width', [0.5, 1.0, 1.5, 2.0])
def test_backbone_halves_its_stages(width):
    features = ShuffleNetV2(width)(torch.zeros(1, 3, 64, 96))
    assert [tuple(each.shape[2:]) for each in features] == [(8, 12), (4, 6), (2, 3)]
    channels = [each.shape[1] for each in features]
    assert channels == [channels[0], 2 * channels[0], 4 * channels[0]]
    assert len(ShuffleNetV2(width, out_stages=(3,))(torch.zeros(1, 3, 64, 64))) == 1
    with pytest.raises(ConfigError, match=r'0\.75'):
        ShuffleNetV2(0.75)


def test_channel_shuffle_interleaves():
    x = torch.randn(2, 6, 3, 4)
    shuffled = channel_shuffle(x, 3)
    for group in range(3):
        for index in range(2):
            assert torch.equal(shuffled[:, index * 3 + group], x[:, group * 2 + index])


@pytest.mark.parametrize('size', [(8, 12), (7, 5)])  # even, and what no doubling gives
def test_neck_keeps_sizes_and_adds_coarser_levels(size):
    neck = GhostPAN([8, 16, 32], 12, num_outs=5).eval()
    sizes = [size]
    for _ in range(4):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    inputs = [torch.randn(1, c, *s, requires_grad=True) for c, s in zip((8, 16, 32), sizes)]
    outputs = neck(inputs)
    assert [tuple(each.shape) for each in outputs] == [(1, 12, *each) for each in sizes]
    outputs[-1].sum().backward()
    assert all(each.grad.any() for each in inputs)


def test_neck_without_a_coarser_level():
    neck = GhostPAN([8, 16], 12, num_outs=2).eval()
    outputs = neck([torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)])
    assert [tuple(each.shape) for each in outputs] == [(1, 12, 8, 8), (1, 12, 4, 4)]


def test_neck_refuses_invalid_sizes():
    with pytest.raises(ConfigError, match='num_outs=2'):
        GhostPAN([8, 16, 32], 12, num_outs=2)
    with pytest.raises(ConfigError, match='out_channels=13'):
        GhostPAN([8, 16, 32], 13)


def test_levels_share_no_weight_and_have_no_scales():
    head = random_detector().bbox_head
    assert {key.split('.')[0] for key in head.state_dict()} == {'cls_convs', 'gfl_cls', 'integral'}
    features = [torch.randn(1, 96, side, side) for side in (8, 4, 2, 1)]
    before = head(features)
    assert [tuple(each.shape) for each in before[0]] == [(1, 80, n, n) for n in (8, 4, 2, 1)]
    assert [tuple(each.shape) for each in before[1]] == [(1, 32, n, n) for n in (8, 4, 2, 1)]
    with torch.no_grad():
        head.cls_convs[1][0].depthwise_conv.conv.weight += 1
    for old, new in zip(before, head(features)):
        same = [torch.equal(*levels) for levels in zip(old, new)]
        assert same == [True, False, True, True]


def test_priors_lie_at_multiples_of_the_stride(detector):
    levels = detector.bbox_head.prior_generator.grid_priors([(2, 3)] * 4, device='cpu')
    for stride, boxes in zip((8, 16, 32, 64), levels):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        expected = [(column * stride, row * stride) for row in range(2) for column in range(3)]
        assert centres.tolist() == [list(map(float, each)) for each in expected]


def test_head_trains_every_parameter():
    detector = random_detector()
    gts = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 40, 40], [30, 10, 120, 90]]), labels=torch.tensor([3, 7])
    )
    losses = detector.bbox_head.loss_by_feat(*logits(detector), [gts], METAS)
    assert losses.keys() == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    sum(losses.values()).backward()
    assert all(value.isfinite() and value > 0 for value in losses.values())
    assert all(each.grad is not None for each in detector.parameters())


def test_boxes_come_with_intervals(detector):
    head = detector.bbox_head
    cfg = head.test_cfg.copy()
    cfg.update(with_uncertainty=True, interval_level=0.9, with_distribution=True, score_thr=0.01)
    (found,) = head.predict_by_feat(*logits(detector), batch_img_metas=METAS, cfg=cfg)
    assert 0 < len(found) <= 100
    assert found.edge_logits.shape[1:] == (4, 8)
    assert (found.edge_low <= found.edge_high).all()
    assert (found.edge_std >= 0).all()


def test_head_refuses_the_same_configs_as_gfl_head():
    with pytest.raises(ConfigError, match='one prior per cell'):
        NanoDetPlusHead(
            3,
            16,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', ratios=[1.0, 2.0], scales=[8], strides=[8, 16]
            ),
        )


@pytest.mark.parametrize('name', ['m_320', 'm_416', 'm-1.5x_416'])
def test_a_config_states_the_pictures_size_once(name):
    cfg = gfl_det.get_config(f'nanodet-plus-{name}_coco')
    side = 320 if '320' in name else 416
    for split in ('train', 'val', 'test'):
        steps = cfg[f'{split}_dataloader'].dataset.pipeline
        (resize,) = [step for step in steps if step.type == 'Resize']
        assert (resize.scale, resize.keep_ratio) == ((side, side), False)
