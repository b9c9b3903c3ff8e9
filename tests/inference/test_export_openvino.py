"""OpenVINO's files: float32 as torch, int8 where it is meant to be and nowhere else."""

from __future__ import annotations

import re

import pytest
import torch

from gfl_det.errors import DataError
from gfl_det.inference.export import (
    OpenVINODetector,
    Outputs,
    Settings,
    write_int8,
    write_onnx,
    write_openvino,
)
from gfl_det.inference.export.evaluation import compare, noise_pictures, torch_detector
from gfl_det.inference.export.runtime import FLOAT
from tests.helpers.exporting import MAPS, random_source, save_maps, tiny_config
from tests.helpers.extras import needs

openvino = pytest.importorskip('openvino')
pytestmark = needs('nncf', 'onnxscript')

PICTURES = noise_pictures([(96, 128)] * 3)
SIZE = (96, 128)
HEAVY = ('Convolution', 'GroupConvolution', 'MatMul')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('openvino')


@pytest.fixture(scope='module')
def source(folder):
    calibrator = save_maps(folder, MAPS, 'GFLv2Head')
    cfg = tiny_config('GFLv2Head', with_class_scores=True)
    return random_source(cfg, folder, calibrator=calibrator)


@pytest.fixture(scope='module')
def written(source, folder):
    """Paths of the float32 and the int8 file of one graph."""
    settings = Settings(Outputs(True, True, class_scores=True), size=SIZE)
    description = write_onnx(source, folder / 'tiny.onnx', settings)
    inputs = [description.preprocessing([each]) for each in PICTURES]
    paths = folder / 'tiny.xml', folder / 'tiny_int8.xml'
    write_openvino(folder / 'tiny.onnx', paths[0], description)
    write_int8(folder / 'tiny.onnx', paths[1], description, inputs, len(inputs))
    return paths


def test_float32_gives_what_torch_gives(source, written):
    detector = OpenVINODetector(written[0], threads=1)
    assert detector.description.precision == 'float32'
    found = compare(torch_detector(source, SIZE), detector, PICTURES)
    assert found.detections > 20
    assert found.is_small, found
    assert detector.detect(PICTURES[:1])[0].class_scores.shape[1] == 3


def feeder(node):
    """The kind of operation that an operation reads, looking through pooling."""
    before = node.input(0).get_source_output().get_node()
    return feeder(before) if before.get_type_name() == 'MaxPool' else before.get_type_name()


def test_int8_keeps_integral_and_quality_in_float(written):
    """Every heavy operation has quantised inputs, but for those that read the distributions."""
    model = openvino.Core().read_model(written[1])
    quantised, kept = [], []
    for node in model.get_ordered_ops():
        if node.get_type_name() in HEAVY:
            group = quantised if feeder(node) == 'FakeQuantize' else kept
            group.append(node.get_friendly_name())
    # Of each of two levels two convolutions of the quality network; the integral.
    assert sum('Conv' in name for name in kept) == 4
    assert sum('MatMul' in name for name in kept) >= 1
    assert all(any(re.match(pattern, name) for pattern in FLOAT) for name in kept), kept
    assert {name.split('/')[0].split('.')[0] for name in quantised} == {
        'backbone',
        'neck',
        'bbox_head',
    }
    of_maps = [
        each for each in model.get_ordered_ops() if re.match(FLOAT[-1], each.get_friendly_name())
    ]
    assert len(of_maps) > 20
    assert 'FakeQuantize' not in {each.get_type_name() for each in of_maps}
    outputs = {'boxes', 'scores', 'edge_std', 'edge_low', 'edge_high', 'edge_entropy'}
    for result in model.get_results():
        before = result.input(0).get_source_output().get_node()
        assert before.get_type_name() != 'FakeQuantize'
        outputs -= result.input(0).get_source_output().get_names()
    assert not outputs


def test_int8_still_detects(source, written):
    detector = OpenVINODetector(written[1], threads=1)
    assert detector.description.precision == 'int8'
    for picture, (found,) in ((each, detector.detect([each])) for each in PICTURES):
        want = torch_detector(source, SIZE)(picture)
        assert len(found) > 0
        torch.testing.assert_close(found.scores[:5], want.scores[:5], rtol=0, atol=0.1)


def test_other_files_are_refused(folder):
    with pytest.raises(DataError, match=r'\.xml'):
        OpenVINODetector(folder / 'tiny.onnx')
    (folder / 'text.xml').write_text('<text/>')
    with pytest.raises(DataError, match=r'OpenVINO .*text\.xml'):
        OpenVINODetector(folder / 'text.xml')
