"""The whole detector: inferencer, test-time augmentation, and mmdet's heads on our parts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from heads import make_maps, make_meta, make_truths
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.runner import save_checkpoint

import gfl_det


@pytest.fixture(scope='module')
def model():
    register_all_modules()
    torch.manual_seed(0)
    detector = MODELS.build(gfl_det.get_config('gfl_r18_fpn_digits').model)
    detector.init_weights()
    with torch.no_grad():  # an untrained head finds nothing above the threshold
        detector.bbox_head.gfl_cls.bias.add_(3.5)
    return detector.eval()


def sample(shape=(96, 128), **meta):
    return DetDataSample(metainfo=dict(make_meta(shape), batch_input_shape=shape, **meta))


def test_inferencer_runs_a_shipped_config(tmp_path, model) -> None:
    config = gfl_det.get_config('gfl_r18_fpn_digits')
    config.model.test_cfg.with_uncertainty = True
    config.dump(tmp_path / 'config.py')
    meta = dict(dataset_meta=dict(classes=tuple(config.classes)))
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), str(tmp_path / 'weights.pth'))
    inferencer = DetInferencer(
        str(tmp_path / 'config.py'),
        str(tmp_path / 'weights.pth'),
        device='cpu',
        show_progress=False,
    )
    image = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    found = inferencer(image, return_datasamples=True)['predictions'][0].pred_instances
    assert len(found) > 0
    assert found.edge_std.shape == found.bboxes.shape
    assert float(found.bboxes.max()) <= 200
    named = inferencer(image)['predictions'][0]
    assert len(named['bboxes']) == len(named['scores']) == len(found)


def test_test_time_augmentation(model) -> None:
    config = ConfigDict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=30),
        module=copy.deepcopy(model),
    )
    tta = MODELS.build(config).eval()
    image = torch.rand(3, 96, 128) * 255
    plain = sample(flip=False, flip_direction=None)
    mirrored = sample(flip=True, flip_direction='horizontal')
    with torch.no_grad():
        (result,) = tta.test_step(
            dict(inputs=[[image], [image.flip(2)]], data_samples=[[plain], [mirrored]])
        )
    boxes = result.pred_instances.bboxes
    assert 0 < len(boxes) <= 30
    # The picture and its mirror image see the same things, so their boxes are near those of one.
    with torch.no_grad():
        alone = model.test_step(dict(inputs=[image], data_samples=[sample()]))[0].pred_instances
    assert (boxes[0] - alone.bboxes).abs().amax(1).min() < 32


@pytest.mark.parametrize('head', ['ATSSHead', 'DDODHead'])
def test_mmdets_heads_run_on_our_assigner(head: str) -> None:
    """With the assigner as the only change, another head's losses stay what they were."""
    changes: dict = {}
    if head == 'DDODHead':
        assigners = {
            prefix: dict(type=f'{prefix}ATSSAssigner', topk=9) for prefix in ('', 'gfl_det.')
        }
        train = {
            prefix: dict(
                assigner=dict(each, alpha=0.8),
                reg_assigner=dict(each, alpha=0.5),
                allowed_border=-1,
                pos_weight=-1,
            )
            for prefix, each in assigners.items()
        }
        changes = dict(loss_iou=dict(type='CrossEntropyLoss', use_sigmoid=True))
    else:
        train = {
            prefix: dict(
                assigner=dict(type=f'{prefix}ATSSAssigner', topk=9),
                allowed_border=-1,
                pos_weight=-1,
            )
            for prefix in ('', 'gfl_det.')
        }
    generator = torch.Generator().manual_seed(0)
    cls, _ = make_maps(2, (128, 160), generator)
    boxes = [torch.randn(2, 4, *level.shape[2:], generator=generator) * 0.1 for level in cls]
    third = [torch.randn(2, 1, *level.shape[2:], generator=generator) for level in cls]
    truths = [make_truths(count, (128, 160), generator) for count in (4, 6)]
    losses = []
    for prefix in ('', 'gfl_det.'):
        built = MODELS.build(
            ConfigDict(
                type=head,
                num_classes=8,
                in_channels=16,
                stacked_convs=1,
                feat_channels=32,
                anchor_generator=dict(
                    type='AnchorGenerator',
                    ratios=[1.0],
                    octave_base_scale=8,
                    scales_per_octave=1,
                    strides=[8, 16, 32, 64, 128],
                ),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
                reg_decoded_bbox=True,
                loss_cls=dict(type='FocalLoss', use_sigmoid=True),
                loss_bbox=dict(type='GIoULoss'),
                train_cfg=train[prefix],
                **changes,
            )
        )
        found = built.loss_by_feat(cls, boxes, third, truths, [make_meta((128, 160))] * 2)
        losses.append({name: [float(each) for each in value] for name, value in found.items()})
    assert losses[0] == losses[1]
    assert sum(losses[0]['loss_bbox']) > 0
