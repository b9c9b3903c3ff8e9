"""Every shipped config, exported and compared with torch: a minute a config."""

from __future__ import annotations

import pytest

from gfl_det.utils.choices import BOX_LIMIT, SCORE_LIMIT
from projects.benchmark.exports import COMPARED_CONFIGS, difference_of


@pytest.mark.slow
@pytest.mark.parametrize('name', COMPARED_CONFIGS)
def test_onnx_runtime_gives_what_torch_gives(name, tmp_path):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    found = difference_of(name, tmp_path)
    assert found.detections > 20
    assert found.score <= SCORE_LIMIT
    assert found.box <= BOX_LIMIT
    # Random weights saturate scores: of two boxes that overlap, either may have the last bit more.
    assert found.unmatched <= found.detections // 50
