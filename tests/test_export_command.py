"""The command of tools/export_onnx.py, run as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run_tool
from exporting import random_checkpoint, tiny_config

from gfl_det.export import OnnxDetector

pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_the_command_exports_and_checks(folder):
    cfg = tiny_config()
    cfg.test_dataloader.dataset.data_root = 'nowhere/'
    cfg.dump(folder / 'tiny.py')
    checkpoint = random_checkpoint(cfg, folder / 'tiny.pth')
    out = folder / 'new' / 'tiny.onnx'
    size = ('--size', 96, 128)
    done = run_tool(
        'export_onnx', folder / 'tiny.py', checkpoint, '--out', out, '--nms', *size, '--check'
    )
    assert done.returncode == 0, done.stderr
    assert f'written: {out} (boxes, scores, labels, counts)' in done.stdout
    assert 'against torch on 3 pictures of noise' in done.stdout
    assert ' 0 without a counterpart' in done.stdout
    assert OnnxDetector(out).classes == ('a', 'b', 'c')


def test_the_command_refuses_in_one_sentence(folder):
    name = 'gfl_r101-dconv-c3-c5_fpn_ms-2x_coco'
    done = run_tool('export_onnx', name, 'none.pth', '--out', folder / 'x.onnx')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f'error: {name} has deformable convolutions')
    assert 'Traceback' not in done.stderr
