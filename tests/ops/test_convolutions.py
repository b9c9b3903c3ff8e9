"""When convolutions are packed; that they give the same bits is tested in inference."""

from __future__ import annotations

import pytest
import torch

from gfl_det.ops.convolutions import can_pack


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, '_reorder_convolution_weight'),
    reason='this PyTorch has no operators of oneDNN',
)
def test_float32_is_packed_where_onednn_is_there(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    assert can_pack(torch.float32)
    assert can_pack(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not can_pack(torch.float32)
