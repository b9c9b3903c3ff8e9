"""The published NanoDet-Plus-m on real pictures: ncnn's numbers, and the reference AP.

The weights and 158 pictures of COCO val2017 lie in ../shared/data; without them these tests skip.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from gfl_det.inference.foreign_weights import convert
from gfl_det.inference.loading import load_detector
from tests.helpers.commands import run_tool
from tests.helpers.ncnn_files import COCO, PAIR
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(
    not (COCO.is_dir() and all(path.is_file() for path in PAIR)),
    reason=f'no weights and pictures in {COCO.parent}',
)
MEAN = np.array([103.53, 116.28, 123.675], np.float32)
STD = np.array([57.375, 57.12, 58.395], np.float32)
REFERENCE = dict(bbox_mAP=0.3344, bbox_mAP_50=0.4922, bbox_mAP_75=0.3573)  # by ncnn in float32


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('release') / 'nanodet-plus-m_416.pth'
    assert convert(PAIR, path).kind == 'folded'
    return path


def network_input(path) -> np.ndarray:
    picture = cv2.resize(cv2.imread(str(path)), (416, 416)).astype(np.float32)
    return np.ascontiguousarray(((picture - MEAN) / STD).transpose(2, 0, 1))


def test_raw_outputs_are_ncnns(checkpoint):
    ncnn = pytest.importorskip('ncnn')
    net = ncnn.Net()
    net.opt.num_threads = 1
    for name in ('fp16_packed', 'fp16_storage', 'fp16_arithmetic', 'bf16_storage'):
        setattr(net.opt, f'use_{name}', False)
    net.load_param(str(PAIR[0]))
    net.load_model(str(PAIR[1]))
    model = load_detector(checkpoint, None, 'cpu', {}).model
    for path in sorted((COCO / 'images').iterdir())[:20]:
        image = network_input(path)
        extractor = net.create_extractor()
        extractor.input('data', ncnn.Mat(image).clone())
        _, output = extractor.extract('output')
        with torch.no_grad():
            maps = zip(*model.bbox_head(model.neck(model.backbone(torch.from_numpy(image)[None]))))
        levels = [torch.cat([cls.sigmoid(), edges], 1).flatten(2) for cls, edges in maps]
        ours = torch.cat(levels, 2)[0].T.numpy()
        np.testing.assert_allclose(ours, np.array(output), rtol=0, atol=2e-3)


def test_ap_is_the_reference(checkpoint, tmp_path):
    options = [
        f'data_root={COCO}/',
        'test_dataloader.dataset.ann_file=instances.json',
        'test_dataloader.dataset.data_prefix.img=images/',
        f'test_evaluator.ann_file={COCO / "instances.json"}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    command = ['nanodet-plus-m_416_coco', str(checkpoint), '--work-dir', str(tmp_path)]
    done = run_tool('test', *command, '--cfg-options', *options)
    for name, expected in REFERENCE.items():
        found = float(done.stdout.rpartition(f'coco/{name}: ')[2].split()[0])
        assert found == pytest.approx(expected, abs=2e-3), name


def test_the_photograph_of_the_readme_is_what_its_command_draws(checkpoint, tmp_path):
    data = pytest.importorskip('skimage.data')
    cv2.imwrite(str(tmp_path / 'coffee.png'), data.coffee()[..., ::-1])
    words = ('--show-thr', '0.36', '--format', 'jpg', '--out', tmp_path / 'drawn')
    done = run_tool('show', checkpoint, tmp_path / 'coffee.png', *words, '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    shown, drawn = (
        cv2.imread(str(path)).astype(float)
        for path in (ROOT / 'docs' / 'images' / 'photograph.jpg', tmp_path / 'drawn' / 'coffee.jpg')
    )
    assert np.abs(shown - drawn).mean() < 1
