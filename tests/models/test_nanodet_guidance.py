"""NanoDet-Plus's auxiliary guidance: who assigns, who learns, and what is left afterwards."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.errors import ConfigError

AUXILIARY = dict(
    type='gfl_det.GFLHead',
    num_classes=80,
    in_channels=192,
    feat_channels=32,
    stacked_convs=1,
    reg_max=7,
    anchor_generator=dict(
        type='AnchorGenerator',
        ratios=[1.0],
        octave_base_scale=5,
        scales_per_octave=1,
        strides=[8, 16, 32, 64],
    ),
)


def build(**changes):
    settings = Config(dict(model=gfl_det.get_config('nanodet-plus-m_416_coco').model.to_dict()))
    model = settings.model
    model.backbone.init_cfg = None
    for name in changes:
        model.pop(name, None)  # in the place of merging
    model.update(type='gfl_det.NanoDetPlus', **changes)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(model)


def sample():
    gts = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 60, 70], [40, 20, 120, 90]]), labels=torch.tensor([3, 7])
    )
    found = DetDataSample(gt_instances=gts)
    shape = (128, 128)
    found.set_metainfo(
        dict(img_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
    )
    return found


@pytest.fixture
def epoch():
    hub = MessageHub.get_current_instance()
    yield lambda number: hub.update_info('epoch', number)
    hub.runtime_info.pop('epoch', None)


@pytest.fixture
def images():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def test_both_heads_learn_from_one_assignment(images, monkeypatch):
    detector = build(aux_head=AUXILIARY)
    seen = []
    match = detector.bbox_head.match
    monkeypatch.setattr(
        detector.bbox_head, 'match', lambda *args: seen.append(args) or match(*args)
    )
    losses = detector.loss(images, [sample(), sample()])
    names = ['loss_cls', 'loss_bbox', 'loss_dfl']
    assert list(losses) == [*names, *(f'aux_{name}' for name in names)]
    (args,) = seen
    features = detector.backbone(images)
    pairs = zip(detector.neck(features), detector.aux_neck(features))
    cls, edges = detector.aux_head([torch.cat(pair, 1) for pair in pairs])
    for given, expected in ((args[0], cls), (args[4], edges)):
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(given, expected))
    sum(losses.values()).backward()
    assert all(each.grad is not None for each in detector.parameters())


@pytest.mark.parametrize(('number', 'trains'), [(0, True), (10, False)])
def test_guidance_lets_go_of_the_backbone(number, trains, images, epoch):
    epoch(number)
    detector = build(aux_head=AUXILIARY, detach_epoch=10)
    losses = detector.loss(images, [sample(), sample()])
    sum(value for name, value in losses.items() if name.startswith('aux_')).backward()
    for part, expected in (('backbone', trains), ('neck', trains), ('aux_neck', True)):
        parameters = getattr(detector, part).parameters()
        assert any(each.grad is not None and each.grad.any() for each in parameters) == expected


def test_without_a_guide_it_is_gfl(images):
    detector = build()
    assert not any('aux' in key for key in detector.state_dict())
    losses = detector.loss(images, [sample(), sample()])
    assert losses.keys() == {'loss_cls', 'loss_bbox', 'loss_dfl'}


def test_a_guide_changes_no_prediction(images):
    guided, alone = build(aux_head=AUXILIARY).eval(), build().eval()
    state = guided.state_dict()
    alone.load_state_dict({key: value for key, value in state.items() if 'aux_' not in key})
    with torch.no_grad():
        pairs = zip(guided(images)[0], alone(images)[0])
    assert all(torch.equal(*pair) for pair in pairs)


def test_an_assigner_that_reads_no_predictions_cannot_be_guided():
    with pytest.raises(ConfigError, match='ATSSAssigner'):
        build(
            aux_head=AUXILIARY,
            train_cfg=dict(assigner=dict(type='gfl_det.ATSSAssigner', topk=9), pos_weight=-1),
        )
