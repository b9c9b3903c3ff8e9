"""The graph that is exported, run in torch, against the head's own prediction."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from gfl_det.calibration.files import save_interval_calibrator, save_operating_point
from gfl_det.calibration.intervals import IntervalCalibrator
from gfl_det.calibration.joint import JointFactors
from gfl_det.calibration.maps import Identity, Isotonic, Platt
from gfl_det.calibration.operating_point import ClassCut, OperatingPoint, Promise
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.export import Outputs, load_source
from gfl_det.inference.export.candidates import ABSENT, apart
from gfl_det.inference.export.evaluation import (
    compare,
    difference,
    noise_pictures,
    predict,
    torch_detector,
)
from tests.helpers.exporting import FITTED_ON, EagerDetector, random_source, save_maps, tiny_config

EVERYTHING = dict(uncertainty=True, distribution=True)
EDGES = ('edge_std', 'edge_low', 'edge_high', 'edge_entropy')
SETTINGS = {
    'as shipped': {},
    'few candidates a level': dict(nms_pre=7, max_per_img=5),
    'more wanted than there are': dict(nms_pre=5000, max_per_img=4000, score_thr=0.1),
    'all classes suppress each other': dict(nms=dict(iou_threshold=0.3, class_agnostic=True)),
    'large boxes only': dict(min_bbox_size=40),
    'boxes of any size': dict(min_bbox_size=-1),
    'no score is low enough': dict(score_thr=0.0, nms_pre=50),
    'no score is high enough': dict(score_thr=0.99999),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('export')


def assert_same(source, outputs, pictures):
    """Equal as a set; with the same fields, and the edges those of the same boxes."""
    detector = EagerDetector(source, outputs)
    found = compare(torch_detector(source, None), detector, pictures)
    assert found.unmatched == 0
    assert found.score < 1e-6
    assert found.box < 1e-3
    assert found.edge < 2e-3
    assert found.entropy < 1e-5
    return found.detections


@pytest.mark.parametrize('nms', [True, False], ids=['nms inside', 'nms outside'])
@pytest.mark.parametrize('name', SETTINGS)
def test_detections_are_the_heads(name, nms, folder):
    source = random_source(tiny_config(**SETTINGS[name]), folder)
    pictures = noise_pictures([(192, 256), (150, 97)])
    count = assert_same(source, Outputs(nms=nms, **EVERYTHING), pictures)
    assert (count > 0) == (name != 'no score is high enough')


@pytest.mark.parametrize('nms', [True, False])
def test_gfl_v2_and_unclipped_boxes(nms, folder):
    cfg = tiny_config('GFLv2Head')
    cfg.model.bbox_head.bbox_coder = dict(type='DistancePointBBoxCoder', clip_border=False)
    assert assert_same(
        random_source(cfg, folder), Outputs(nms, **EVERYTHING), noise_pictures([(192, 256)])
    )


@pytest.mark.parametrize('nms', [True, False])
def test_a_batch_of_unequal_pictures(nms, folder):
    """Images of a batch differ in the part that counts and in scale, as with mmdet's padding.

    Wide padding would give cells of equal scores, among which torch.topk takes any.
    """
    source = random_source(tiny_config(), folder)
    detector = EagerDetector(source, Outputs(nms, **EVERYTHING))
    inputs = source.preprocessing(noise_pictures([(192, 256), (170, 256), (384, 440)]))
    found = detector.finish(detector.run(inputs))
    for want, got in zip(predict(source.model, inputs), found):
        each = difference(want, got)
        assert each.detections > 20
        assert (each.unmatched, each.score < 1e-6, each.box < 1e-3) == (0, True, True)
        for name in EDGES:
            assert got[name].shape == (len(got), 4)


@pytest.mark.parametrize('nms', [True, False])
def test_calibrated_scores_come_in_their_order_and_choose_no_boxes(nms, folder):
    maps = (Platt(0.5, 1.0), Identity(), Isotonic((0.2, 0.6), (0.3, 0.3)))  # one gives ties
    path = save_maps(folder, maps)
    plain = random_source(tiny_config(), folder)
    source = random_source(tiny_config(), folder, calibrator=path)
    pictures = noise_pictures([(192, 256)])
    assert assert_same(source, Outputs(nms), pictures)
    raw = EagerDetector(plain, Outputs(nms)).detect(pictures)[0]
    found = EagerDetector(source, Outputs(nms)).detect(pictures)[0]
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert torch.equal(found.raw_scores.sort(descending=True).values, raw.scores)
    assert not torch.equal(found.scores, raw.scores)


@pytest.mark.parametrize('nms', [True, False])
@pytest.mark.parametrize(
    'maps', [(Platt(0.5, 1.0), Identity(), Isotonic((0.2, 0.6), (0.3, 0.3))), ()]
)
def test_scores_of_all_classes_are_the_heads_raw_and_calibrated(nms, maps, folder):
    given = dict(calibrator=save_maps(folder, maps)) if maps else {}
    source = random_source(tiny_config(with_class_scores=True), folder, **given)
    pictures = noise_pictures([(192, 256)])
    assert assert_same(source, Outputs(nms, class_scores=True), pictures)  # all classes too
    (found,) = EagerDetector(source, Outputs(nms, class_scores=True)).detect(pictures)
    rows = torch.arange(len(found))
    for name in ('', 'raw_') if maps else ('',):
        own = found[f'{name}class_scores'][rows, found.labels]
        torch.testing.assert_close(own, found[f'{name}scores'], rtol=0, atol=1e-7)
    want = torch_detector(source, None)(pictures[0])
    assert {*found.keys(), *EDGES} == {*want.keys()}
    assert 'class_scores' not in EagerDetector(source, Outputs(nms)).detect(pictures)[0]


@pytest.mark.parametrize('nms', [False, True])
def test_an_operating_point_cuts_each_class(nms, folder):
    """What is left is what the detector without cuts finds above them; one class has no cut."""
    plain, pictures = random_source(tiny_config(), folder), noise_pictures([(96, 128)])
    (every,) = EagerDetector(plain, Outputs(nms)).detect(pictures)
    first, third = (float(every.scores[every.labels == label].median()) for label in (0, 2))
    least = (first, None, third)
    cuts = [ClassCut(name, cut, 9, 9, 9, 0) for name, cut in zip('abc', least)]
    point = OperatingPoint(Promise('precision', 0.9), 'GFLHead', None, tuple(cuts), FITTED_ON)
    save_operating_point(point, folder / 'cuts.json')
    cut = random_source(tiny_config(operating_point=str(folder / 'cuts.json')), folder)
    (found,) = EagerDetector(cut, Outputs(nms)).detect(pictures)
    cut_of = torch.tensor([float('inf') if each is None else each for each in least])
    kept = every.scores >= cut_of[every.labels]
    assert 0 < kept.sum() < len(every)
    assert torch.equal(found.bboxes, every.bboxes[kept])
    assert torch.equal(found.labels, every.labels[kept])
    assert_same(cut, Outputs(nms), pictures)


def test_boxes_stay_finite_where_no_image_has_a_candidate():
    boxes, labels = torch.rand(2, 3, 4), torch.tensor([[0, 1, 2], [0, 0, 5]])
    assert apart(boxes, torch.full((2, 3), ABSENT), labels).isfinite().all()


def test_soft_nms_is_done_by_the_runtime_alone(folder):
    cfg = tiny_config(nms=dict(type='soft_nms', iou_threshold=0.5, min_score=0.05))
    source = random_source(cfg, folder)
    assert assert_same(source, Outputs(nms=False), noise_pictures([(192, 256)]))
    with pytest.raises(ConfigError, match=r"'soft_nms'.*--nms"):
        EagerDetector(source, Outputs(nms=True))
    calibrated = random_source(cfg, folder, calibrator=save_maps(folder, [Identity()] * 3))
    with pytest.raises(ConfigError, match=r"'soft_nms'.*calibrat"):
        EagerDetector(calibrated, Outputs())


def test_a_graph_with_nms_needs_numbers(folder):
    source = random_source(tiny_config(max_per_img=-1), folder)
    with pytest.raises(ConfigError, match=r'test_cfg\.max_per_img'):
        EagerDetector(source, Outputs(nms=True))
    assert assert_same(source, Outputs(nms=False), noise_pictures([(96, 128)]))


def test_a_calibrator_of_another_head_is_refused(folder):
    path = save_maps(folder, [Identity()] * 3, 'GFLv2Head')
    with pytest.raises(DataError, match=r"'GFLv2Head'"):
        random_source(tiny_config(), folder, calibrator=path)


def test_a_head_of_another_kind_is_refused(folder):
    cfg = tiny_config()
    cfg.model.type = 'RetinaNet'
    cfg.model.bbox_head = dict(type='RetinaHead', num_classes=3, in_channels=16)
    cfg.model.train_cfg = None
    cfg.model.bbox_head.anchor_generator = dict(
        type='AnchorGenerator',
        ratios=[1.0],
        octave_base_scale=4,
        scales_per_octave=1,
        strides=[8, 16],
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'retina.pth')
    with pytest.raises(ConfigError, match=r'^retina .*RetinaHead'):
        load_source(cfg, 'retina', str(folder / 'retina.pth'))


def test_the_interval_level_is_the_configs(folder):
    wide = random_source(tiny_config(interval_level=0.99), folder)
    narrow = random_source(tiny_config(), folder, level=0.5)
    assert (wide.intervals, narrow.intervals) == ((0.99, 1.0), (0.5, 1.0))
    pictures = noise_pictures([(96, 128)])
    widths = []
    for source in (wide, narrow):
        detector = EagerDetector(source, Outputs(True, True))
        assert detector.level == source.intervals.level
        (found,) = detector.detect(pictures)
        widths.append((found.edge_high - found.edge_low).sum())
    assert widths[0] > 1.5 * widths[1]


def test_intervals_of_whole_boxes_are_in_the_graph(folder):
    """Factors by class and size of the box, as the head takes them."""
    joint = JointFactors(
        (0.5, 0.9),
        ('a', 'rest'),
        (120, 200),
        ((1.0, 1.5), (2.0, 3.0)),
        ((0, 1, 1), (1, 1, 0), (1, 0, 0)),
    )
    fitted = IntervalCalibrator(
        (0.5, 0.9), ((1.0,) * 4,) * 2, 'GFLHead', ('a', 'b', 'c'), 0.5, FITTED_ON, joint
    )
    path = folder / 'joint.json'
    save_interval_calibrator(fitted, path)
    source = random_source(tiny_config(interval_joint=True), folder, intervals=str(path), level=0.9)
    table = source.intervals.factor
    assert table.factors.tolist() == [[1.5, 3, 3], [3, 3, 1.5], [3, 1.5, 1.5]]
    assert assert_same(source, Outputs(True, True), noise_pictures([(96, 128)]))
    with pytest.raises(ConfigError, match='--nms'):
        EagerDetector(source, Outputs(False, True))
