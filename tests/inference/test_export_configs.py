"""Every shipped config, exported and compared with torch.

Minutes a config: `pytest -m slow tests/test_export_configs.py -s` prints the differences.
"""

from __future__ import annotations

import pytest

import gfl_det
from gfl_det.inference.export import ExportSettings, OnnxDetector, Outputs, write_onnx
from gfl_det.inference.export.evaluation import (
    BOX_LIMIT,
    SCORE_LIMIT,
    compare,
    noise_pictures,
    torch_detector,
)
from gfl_det.utils.config import config_names
from tests.helpers.exporting import random_source, shrink_pictures


@pytest.mark.slow
@pytest.mark.parametrize('name', config_names())
def test_onnx_runtime_gives_what_torch_gives(name, tmp_path):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    cfg = gfl_det.get_config(name)
    shrink_pictures(cfg, (320, 224))
    source = random_source(cfg, tmp_path)
    write_onnx(source, tmp_path / 'detector.onnx', ExportSettings(Outputs(nms=True)))
    detector = OnnxDetector(tmp_path / 'detector.onnx')
    pictures = noise_pictures([(224, 320), (260, 150)])
    found = compare(torch_detector(source, None), detector, pictures)
    print(f'\n{name}: {found}')
    assert found.detections > 20
    assert found.score <= SCORE_LIMIT
    assert found.box <= BOX_LIMIT
    # Random weights saturate scores: of two boxes that overlap, either may have the last bit more.
    assert found.unmatched <= found.detections // 50
