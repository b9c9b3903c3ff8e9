"""Exported files in ONNX Runtime: the numbers of torch, and one sentence where it cannot be."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import ResNet

from gfl_det.calibration.files import save_interval_calibrator
from gfl_det.calibration.intervals import IntervalCalibrator
from gfl_det.compat.deform import traceable
from gfl_det.errors import ConfigError, DataError, SetupError
from gfl_det.inference.export import ExportSettings, OnnxDetector, Outputs, onnx_file, write_onnx
from gfl_det.inference.export.evaluation import (
    BOX_LIMIT,
    EDGE_LIMIT,
    ENTROPY_LIMIT,
    SCORE_LIMIT,
    compare,
    noise_pictures,
    torch_detector,
)
from gfl_det.ops.intervals import edge_intervals, edge_quantiles
from tests.helpers.exporting import FITTED_ON, MAPS, random_source, save_maps, tiny_config
from tests.helpers.extras import needs
from tests.helpers.paths import ROOT

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytestmark = needs('onnxscript')

LEVELS, FACTORS = (0.5, 0.7), ((0.5, 1.0, 2.0, 3.0), (0.7, 1.2, 2.0, 3.2))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('onnx')


@pytest.fixture(scope='module')
def source(folder):
    """GFLv2, a calibrator whose classes have maps of every kind, intervals fitted for each side."""
    intervals = folder / 'intervals.json'
    fitted = IntervalCalibrator(LEVELS, FACTORS, 'GFLv2Head', ('a', 'b', 'c'), 0.5, FITTED_ON)
    save_interval_calibrator(fitted, intervals)
    given = dict(
        calibrator=save_maps(folder, MAPS, 'GFLv2Head'), intervals=str(intervals), level=0.6
    )
    return random_source(tiny_config('GFLv2Head'), folder, **given)


@pytest.fixture(scope='module')
def detector(source, folder):
    source.model.bbox_head.test_cfg.with_class_scores = True
    write_onnx(source, folder / 'all.onnx', ExportSettings(Outputs(True, True, True, True)))
    return OnnxDetector(folder / 'all.onnx', threads=1)


@pytest.mark.parametrize('shape', [(192, 256), (40, 300), (33, 17), (700, 500)], ids=str)
def test_any_size_gives_what_torch_gives(shape, source, detector):
    found = compare(torch_detector(source, None), detector, noise_pictures([shape]))
    assert found.detections > 0
    assert found.is_small, found
    assert found.score < SCORE_LIMIT / 10
    assert found.box < BOX_LIMIT / 10
    assert found.edge < EDGE_LIMIT / 10
    assert found.entropy < ENTROPY_LIMIT / 10


def test_intervals_are_of_the_level_and_stretched_side_by_side(source, detector):
    """Against the file's own distributions: each side by its factor between those of the levels."""
    (found,) = detector.detect(noise_pictures([(192, 256)]))
    assert detector.level == 0.6
    edges = found.edge_logits, found.bin_widths, found.prior_centres
    want = edge_intervals(edge_quantiles(*edges, 0.6), (0.6, 1.1, 2.0, 3.1))
    border = torch.tensor([256.0, 192.0, 256.0, 192.0])
    for ends, given in ((want.low, found.edge_low), (want.high, found.edge_high)):
        torch.testing.assert_close(given, ends.clamp(min=0).minimum(border), rtol=0, atol=1e-2)


def test_any_batch_gives_what_its_pictures_give_alone(detector):
    pictures = noise_pictures([(192, 256), (96, 128), (384, 512)])  # resized to one size
    alone = [detector.detect([each])[0] for each in pictures]
    for one, other in zip(alone, detector.detect(pictures)):
        assert one.keys() == other.keys()
        assert len(one) == len(other) > 0
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)


def test_results_are_the_inferencers(detector, folder, capsys):
    """Files, arrays and a broken file; the type, fields and warnings of GFLInferencer's results."""
    picture = noise_pictures([(192, 256)])[0]
    cv2.imwrite(str(folder / 'one.png'), picture)
    (folder / 'torn.png').write_bytes(b'no picture')
    paths = [str(folder / 'one.png'), str(folder / 'torn.png'), picture, picture]
    results = detector(paths, batch_size=2, keep_images=True)
    assert 'warning: ' in (told := capsys.readouterr().err)
    assert 'torn.png' in told
    assert results[1].image is None
    assert np.array_equal(results[3].image, picture)
    assert [each.error is None for each in results] == [True, False, True, True]
    assert len({len(results[index]) for index in (0, 2, 3)}) == 1
    first = results.to_dict()[0]
    assert first['level'] == 0.6
    edges = {'edge_std', 'edge_low', 'edge_high', 'edge_entropy'}
    assert {'bbox', 'score', 'raw_score', 'label', 'class', *edges} <= set(first['detections'][0])
    assert len(first['detections'][0]['class_scores']) == 3
    with pytest.raises(DataError, match=r'torn\.png'):
        detector(str(folder / 'torn.png'), progress=False)
    with pytest.raises(ConfigError, match=r'batch_size .*not 0'):
        detector(paths, batch_size=0)


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(detector, folder):
    assert detector.classes == ('a', 'b', 'c')
    assert (detector.description.head, detector.description.nms) == ('GFLv2Head', True)
    model = onnx.load(folder / 'all.onnx')
    onnx.checker.check_model(model)
    assert (
        max(each.version for each in model.opset_import if not each.domain) == ExportSettings.opset
    )
    sizes = [dimension.dim_param for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    assert [bool(each) for each in sizes] == [True, False, True, True]
    content = (folder / 'all.onnx').read_bytes()
    assert b'site-packages' not in content
    assert str(ROOT).encode() not in content


def test_without_nms_and_of_a_fixed_size(folder):
    source = random_source(tiny_config(), folder)
    write_onnx(source, folder / 'cells.onnx', ExportSettings(Outputs(), size=(96, 128)))
    detector = OnnxDetector(folder / 'cells.onnx')
    pictures = noise_pictures([(96, 128), (300, 200)])
    found = compare(torch_detector(source, (96, 128)), detector, pictures)
    assert found.detections > 0
    assert found.is_small, found
    outputs = detector.run(detector.description.preprocessing(pictures))
    cells = 12 * 16 + 6 * 8
    assert outputs['boxes'].shape == (2, cells, 4)
    assert outputs['scores'].shape == (2, cells, 3)
    assert np.bincount(outputs['levels']).tolist() == [192, 48]


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(opset=17), '--opset 17: give one from 18 to 23'),
        (dict(size=(100, 128)), 'The --size 100 128 is not a pair .* multiples of 32: use 96 128'),
        (dict(size=(0, -64)), 'The --size 0 -64 is not a pair .*: use 32 32'),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ConfigError, match=words):
        ExportSettings(**settings)


def test_other_files_are_refused(folder):
    with pytest.raises(DataError, match=r'\.onnx'):
        OnnxDetector(folder / 'a.xml')
    with pytest.raises(DataError, match='does not exist'):
        OnnxDetector(folder / 'none.onnx')
    (folder / 'text.onnx').write_text('text')
    with pytest.raises(DataError, match='cannot be run'):
        OnnxDetector(folder / 'text.onnx')
    helper = onnx.helper
    value = helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', [value], [other])
    opset = [helper.make_opsetid('', 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / 'other.onnx')
    with pytest.raises(DataError, match='gfl-det export'):
        OnnxDetector(folder / 'other.onnx')


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(SetupError, match=r'pip install "gfl_det\[onnx\]"'):
        onnx_file.require('onnxruntime')


def test_a_detector_with_deformable_convolutions_is_exported(folder, monkeypatch):
    """In a ResNet-50 of one block per stage: all thirteen blocks take twice as long to trace."""
    bottleneck, _ = ResNet.arch_settings[50]
    monkeypatch.setitem(ResNet.arch_settings, 50, (bottleneck, (1, 1, 1, 1)))
    cfg = tiny_config()
    dcn = dict(type='DCN', deform_groups=2, fallback_on_stride=False)
    cfg.model.backbone.update(depth=50, dcn=dcn, stage_with_dcn=(True, False, False))
    cfg.model.neck.in_channels = [64, 128]
    source = random_source(cfg, folder)
    for name, parameter in source.model.named_parameters():
        if 'conv_offset.weight' in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    path = folder / 'DCN.onnx'
    write_onnx(source, path, ExportSettings(Outputs(nms=True)))
    pictures = noise_pictures([(96, 128), (64, 96)])
    found = compare(torch_detector(source, None), OnnxDetector(path), pictures)
    assert found.detections > 20
    assert found.unmatched == 0
    assert found.score <= SCORE_LIMIT
    assert found.box <= BOX_LIMIT


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_a_deformable_convolution_is_exported_as_a_plain_graph(folder, kind):
    torch.manual_seed(0)
    layer = build_conv_layer(dict(type=kind, deform_groups=2), 8, 6, 3, stride=2, padding=1)
    for name, parameter in layer.named_parameters():
        if 'conv_offset' in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    images = torch.randn(2, 8, 13, 10)
    with torch.no_grad(), traceable():
        program = torch.onnx.export(
            layer.eval(),
            (images,),
            dynamo=True,
            opset_version=ExportSettings().opset,
            custom_translation_table=onnx_file.translations(),
            verbose=False,
        )
        expected = layer(images)
    path = folder / f'{kind}_layer.onnx'
    program.save(path, external_data=False)
    domains = {node.domain for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert domains == {''}
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
