"""NanoDet-Plus exported: ONNX Runtime and OpenVINO give what torch gives, int8 nearly its AP."""

from __future__ import annotations

import copy
import json

import cv2
import pytest
import torch

import gfl_det
from gfl_det.inference.export import (
    ExportSettings,
    OnnxDetector,
    OpenVINODetector,
    Outputs,
    load_source,
    write_int8,
    write_onnx,
    write_openvino,
)
from gfl_det.inference.export.evaluation import (
    average_precision,
    compare,
    noise_pictures,
    picture_paths,
    torch_detector,
)
from gfl_det.inference.foreign_weights import convert
from projects.benchmark.exports import NOISE, SCALE, shrink_pictures
from tests.helpers.ncnn_files import COCO, PAIR, random_detector

NAME = 'nanodet-plus-m_416_coco'
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def packages():
    for package in ('onnxscript', 'onnxruntime', 'openvino', 'nncf'):
        pytest.importorskip(package)


def random_source(cfg, folder):
    detector = random_detector(cfg)
    for output in detector.bbox_head.gfl_cls:
        torch.nn.init.normal_(output.weight, 0, 0.1)
        torch.nn.init.constant_(output.bias, -2.0)
    torch.save(dict(state_dict=detector.state_dict()), folder / 'weights.pth')
    return load_source(cfg, NAME, str(folder / 'weights.pth'))


@pytest.mark.parametrize('size', [None, (224, 320)])
def test_both_runtimes_give_what_torch_gives(size, tmp_path):
    cfg = gfl_det.get_config(NAME)
    shrink_pictures(cfg, SCALE)
    source = random_source(cfg, tmp_path)
    settings = ExportSettings(Outputs(nms=True, uncertainty=True), size=size)
    description = write_onnx(source, tmp_path / 'detector.onnx', settings)
    write_openvino(tmp_path / 'detector.onnx', tmp_path / 'detector.xml', description)
    pictures = noise_pictures(NOISE)
    for detector in (
        OnnxDetector(tmp_path / 'detector.onnx'),
        OpenVINODetector(tmp_path / 'detector.xml', threads=1),
    ):
        found = compare(torch_detector(source, size), detector, pictures)
        assert found.detections > 20
        assert found.is_small, found


def halves(folder):
    """Configs of every other picture of the COCO part, and of those between."""
    content = json.loads((COCO / 'instances.json').read_text())
    configs = []
    for half in range(2):
        images = content['images'][half::2]
        ids = {each['id'] for each in images}
        boxes = [each for each in content['annotations'] if each['image_id'] in ids]
        path = folder / f'half{half}.json'
        path.write_text(json.dumps(dict(content, images=images, annotations=boxes)))
        cfg = copy.deepcopy(gfl_det.get_config(NAME))
        cfg.test_dataloader.dataset.update(
            data_root='', ann_file=str(path), data_prefix=dict(img=f'{COCO}/images/')
        )
        cfg.test_evaluator.ann_file = str(path)
        configs.append(cfg)
    return configs


@pytest.mark.skipif(
    not (COCO.is_dir() and all(path.is_file() for path in PAIR)),
    reason=f'no weights and pictures beside {COCO}',
)
def test_int8_with_ranges_of_one_half_has_the_ap_on_the_other(tmp_path):
    convert(PAIR, tmp_path / 'release.pth')
    ranges, judged = halves(tmp_path)
    source = load_source(judged, NAME, str(tmp_path / 'release.pth'))
    settings = ExportSettings(Outputs(nms=True), size=(416, 416))
    description = write_onnx(source, tmp_path / 'detector.onnx', settings)
    write_openvino(tmp_path / 'detector.onnx', tmp_path / 'float32.xml', description)
    paths = [path for _, path in picture_paths(ranges, 'test')]
    inputs = (description.preprocessing([cv2.imread(path)]) for path in paths)
    int8 = tmp_path / 'int8.xml'
    write_int8(tmp_path / 'detector.onnx', int8, description, inputs, len(paths))
    found = []
    for path in (tmp_path / 'float32.xml', int8):
        detector = OpenVINODetector(path, threads=1)
        numbers = average_precision(
            lambda name, detector=detector: detector.detect([cv2.imread(name)])[0],
            source.classes,
            judged,
            'test',
        )
        found.append(numbers['coco/bbox_mAP'])
    assert found[1] == pytest.approx(found[0], abs=0.005)
