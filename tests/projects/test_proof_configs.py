"""Configs of the comparisons in docs/results/calibration.md: they differ in the head and train."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from tests.helpers.paths import ROOT

FOLDER = ROOT / 'configs'
NAMES = sorted(path.stem for path in (FOLDER / 'calibration').glob('*.py'))
HEADS = dict(atss='ATSSHead', retinanet='RetinaHead', gfl='GFLHead')


def plain(name: str) -> tuple[Config, Config]:
    """A config and the shipped one it is compared with."""
    data = 'bccd' if 'bccd' in name else 'digits'
    cfg = Config.fromfile(FOLDER / 'calibration' / f'{name}.py')
    return cfg, Config.fromfile(FOLDER / f'gfl_r18_fpn_{data}.py')


def test_there_are_configs() -> None:
    assert {'atss_r18_fpn_bccd', 'retinanet_r18_fpn_digits'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_only_the_head_differs(name: str) -> None:
    ours, usual = (cfg.to_dict() for cfg in plain(name))
    heads = [cfg['model'].pop('bbox_head') for cfg in (ours, usual)]
    assert heads[0] != heads[1]
    if name.startswith('gfl'):
        for head in heads:
            del head['loss_cls']
        assert heads[0] == heads[1]
    else:
        kept = ('num_classes', 'in_channels', 'feat_channels', 'stacked_convs', 'norm_cfg')
        assert all(heads[0][key] == heads[1][key] for key in kept)
        assert heads[0]['anchor_generator']['strides'] == heads[1]['anchor_generator']['strides']
        assert ours['model'].pop('type') != usual['model'].pop('type')
        if name.startswith('retinanet'):
            for model in (ours['model'], usual['model']):
                del model['train_cfg'], model['test_cfg']['nms']
        else:
            assert heads[0]['anchor_generator'] == heads[1]['anchor_generator']
    assert ours == usual


@pytest.mark.parametrize('name', NAMES)
def test_each_trains_and_predicts(name: str) -> None:
    cfg, _ = plain(name)
    gt = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 70, 80]]), labels=torch.tensor([1], dtype=torch.int64)
    )
    sample = DetDataSample(gt_instances=gt)
    sample.set_metainfo(dict(img_shape=(96, 128), ori_shape=(96, 128), scale_factor=(1.0, 1.0)))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
        assert type(model.bbox_head).__name__ == HEADS[name.split('_')[0]]
        images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)]
        batch = dict(inputs=images, data_samples=[sample])
        inputs = model.data_preprocessor(copy.deepcopy(batch), training=True)
        total, _ = model.parse_losses(model(**inputs, mode='loss'))
        total.backward()
        assert all(
            torch.isfinite(weights.grad).all()
            for weights in model.parameters()
            if weights.grad is not None
        )
        model.eval()
        with torch.no_grad():
            (found,) = model(**model.data_preprocessor(batch), mode='predict')
    scores = found.pred_instances.scores
    assert ((scores >= 0) & (scores <= 1)).all()
