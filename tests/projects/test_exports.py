"""Exported detectors beside torch: random weights that detect, int8 on real files, tables."""

from __future__ import annotations

import json

import pytest

import gfl_det
from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
from projects.benchmark import exports
from tests.helpers.exporting import tiny_config
from tests.helpers.extras import needs


@pytest.mark.parametrize('name', ['nanodet-plus-m_416_coco', 'gfl_r18-w16_fpn_digits'])
def test_random_weights_load_into_each_kind_of_head(name, tmp_path) -> None:
    cfg = gfl_det.get_config(name)
    checkpoint = exports.random_checkpoint(cfg, tmp_path / 'weights.pth')
    assert exports.load_source(cfg, name, checkpoint).classes


@pytest.mark.slow
@needs('openvino', 'nncf', 'onnxruntime', 'onnxscript')
def test_int8_is_judged_on_the_validation_split(tmp_path, monkeypatch) -> None:
    cfg = tiny_config()
    build_digits(tmp_path / 'digits', DigitsRecipe(train=2, val=3), workers=0)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=tuple('012'))
    monkeypatch.setattr(exports.gfl_det, 'get_config', lambda _: cfg)
    checkpoint = exports.random_checkpoint(cfg, tmp_path / 'weights.pth')
    found = exports.judge('tiny', checkpoint, str(tmp_path / 'digits'), tmp_path)
    assert found['pictures'] == 3
    assert found['ap'].keys() == {'torch', 'float32', 'int8'}
    assert found['ap']['float32'] == pytest.approx(found['ap']['torch'], abs=2e-3)
    assert exports.Difference(**found['differences']['ONNX Runtime, float32']).is_small


def test_tables_are_of_the_files() -> None:
    same = dict(detections=543, score=4.8e-7, box=3.1e-5, unmatched=0)
    content = json.loads(json.dumps(dict(same=dict(name=same))))
    assert '| name | 543 | 4.8e-07 | 3.1e-05 | 0 |' in exports.same_table(content)
    ap = dict(torch=0.638, float32=0.638, int8=0.637)
    judged = dict(int8=[dict(config='name', pictures=200, ap=ap)])
    assert '| name | 200 | .638 | .638 | .637 |' in exports.int8_table(judged)
    judged['int8'][0]['differences'] = {'OpenVINO': dict(same, edge=0.001, entropy=4e-6)}
    expected = '| name | OpenVINO | 543 | 4.8e-07 | 3.1e-05 | 1.0e-03 | 4.0e-06 | 0 |'
    assert expected in exports.trained_table(judged)
    times = dict(time=dict(first={'mmdet': 80.0, 'int8': 16.0}, second={'mmdet': 9.0, 'int8': 3.0}))
    assert '| int8 | 16.0 ms, 5.0 x | 3.0 ms, 3.0 x |' in exports.time_table(times)
