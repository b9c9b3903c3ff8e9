"""The whole detector: inferencer and test-time augmentation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.runner import save_checkpoint

import gfl_det
from tests.helpers.heads import make_meta


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
