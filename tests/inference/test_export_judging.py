"""How exported files are judged: by AP, by time against mmdet's own detector, by comparison."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from gfl_det.cli import export
from gfl_det.errors import ConfigError
from gfl_det.inference.export import Outputs
from gfl_det.inference.export.evaluation import (
    average_precision,
    check_judged,
    counterpart,
    difference,
    noise_pictures,
    picture_paths,
    predict,
    time_in_turns,
)
from tests.helpers.exporting import EagerDetector, random_source, tiny_config

BOX = [10.0, 20.0, 50.0, 60.0]  # xyxy


@pytest.fixture
def cfg(tmp_path):
    """Two pictures with an object each, of the first and of the second class."""
    images, annotations = [], []
    for number, picture in enumerate(noise_pictures([(96, 128), (64, 64)])):
        cv2.imwrite(str(tmp_path / f'{number}.png'), picture)
        height, width = picture.shape[:2]
        images.append(dict(id=number + 5, file_name=f'{number}.png', height=height, width=width))
        box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
        annotations.append(
            dict(id=number + 1, image_id=number + 5, category_id=number + 1, bbox=box)
            | dict(area=box[2] * box[3], iscrowd=0)
        )
    categories = [dict(id=index + 1, name=name) for index, name in enumerate('abc')]
    parts = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'set.json').write_text(json.dumps(parts))
    cfg = tiny_config()
    cfg.test_dataloader.dataset.update(
        data_root=str(tmp_path), ann_file='set.json', data_prefix=dict(img='')
    )
    cfg.test_evaluator.ann_file = str(tmp_path / 'set.json')
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield cfg


def one(label, score=0.9, shift=0.0):
    boxes = torch.tensor([BOX]) + shift
    return InstanceData(bboxes=boxes, scores=torch.tensor([score]), labels=torch.tensor([label]))


def test_ap_of_what_is_true_is_one_and_of_half_of_it_a_half(cfg):
    labels = {path: label for label, (_, path) in enumerate(picture_paths(cfg, 'test'))}
    right = average_precision(lambda path: one(labels[path]), 'abc', cfg, 'test')
    assert right['coco/bbox_mAP'] == 1.0
    half = average_precision(lambda path: one(0), 'abc', cfg, 'test')
    assert 0.2 < half['coco/bbox_mAP'] <= 0.5


def test_wrapped_data_sets_and_lists_of_metrics(cfg):
    """Each picture counts once, and metrics that need more than detections are passed over."""
    pictures = picture_paths(cfg, 'test')
    assert len(pictures) == 2
    plain = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=plain)
    assert picture_paths(cfg, 'test') == pictures
    halves = [dict(plain, indices=1), dict(type='RepeatDataset', times=2, dataset=plain)]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=halves)
    assert picture_paths(cfg, 'test') == pictures
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=plain)
    coco = cfg.test_evaluator
    cfg.test_evaluator = [dict(type='VOCMetric'), coco, dict(coco, prefix='again')]
    check_judged(cfg, 'test')
    labels = {path: label for label, (_, path) in enumerate(pictures)}
    found = average_precision(lambda path: one(labels[path]), 'abc', cfg, 'test')
    assert found['coco/bbox_mAP'] == found['again/bbox_mAP'] == 1.0
    cfg.test_evaluator = [dict(type='VOCMetric')]
    with pytest.raises(ConfigError, match='no CocoMetric in test_evaluator'):
        check_judged(cfg, 'test')


def test_a_split_that_is_not_there(cfg):
    cfg.val_dataloader = None
    with pytest.raises(ConfigError, match='no val_dataloader'):
        picture_paths(cfg, 'val')


def test_a_split_without_pictures_is_checked_on_noise(cfg):
    """A comparison of nothing would find no difference."""
    assert export._test_pictures(cfg)[1] == 'pictures of the test split'
    empty = json.dumps(dict(images=[], annotations=[], categories=[]))
    Path(cfg.test_evaluator.ann_file).write_text(empty)
    cfg.test_dataloader.dataset.update(type='mmdet.CocoDataset', serialize_data=False)
    assert picture_paths(cfg, 'test') == []
    pictures, what = export._test_pictures(cfg)
    assert (len(pictures), what) == (3, 'pictures of noise')


def test_the_graph_gives_what_mmdets_own_detector_gives(cfg, tmp_path):
    source = random_source(cfg, tmp_path)
    name, theirs = counterpart(cfg, source.model)
    assert (name, type(theirs.bbox_head).__module__.split('.')[0]) == (
        'mmdet, torch, eager',
        'mmdet',
    )
    inputs = source.preprocessing(noise_pictures([(192, 256)]))
    detector = EagerDetector(source, Outputs(nms=True))
    found = difference(predict(theirs, inputs)[0], detector.finish(detector.run(inputs))[0])
    assert found.detections > 20
    assert found.is_small, found


def test_times_begin_with_what_they_are_compared_to(cfg, tmp_path):
    source = random_source(cfg, tmp_path)
    detector = EagerDetector(source, Outputs(nms=True))
    times = time_in_turns(source, cfg, {'file': detector}, (64, 96))
    assert list(times) == ['mmdet, torch, eager', 'gfl_det, torch, optimize_for_inference', 'file']
    assert min(times.values()) > 0


@pytest.mark.parametrize(
    ('found', 'unmatched'),
    [
        (one(1), 0),
        (one(2), 2),  # of another class
        (one(1, score=0.95), 2),
        (one(1, shift=3.0), 2),
        (one(1)[:0], 1),
    ],
    ids=['equal', 'class', 'score', 'place', 'none'],
)
def test_a_detection_without_a_counterpart_counts_on_both_sides(found, unmatched):
    result = difference(one(1), found)
    assert result.unmatched == unmatched
    assert result.is_small == (unmatched == 0)


def test_small_differences_are_told_and_not_small_ones_refused():
    near = difference(one(1), one(1, shift=0.03))
    assert near.box == pytest.approx(0.03, abs=1e-5)
    assert near.is_small
    far = difference(one(1), one(1, score=0.9005))
    assert far.score == pytest.approx(5e-4, abs=1e-6)
    assert (far.unmatched, far.is_small) == (0, False)


def with_edges(low=0.0, entropy=1.0, std=2.0):
    found, ones = one(1), torch.ones(1, 4)
    found.update(InstanceData(edge_std=std * ones, edge_low=low * ones, edge_high=9 * ones))
    found.edge_entropy = entropy * ones
    return found


@pytest.mark.parametrize(
    ('other', 'small'),
    [
        (dict(low=0.01), True),
        (dict(low=1.0), False),
        (dict(std=2.5), False),
        (dict(std=float('nan')), False),
        (dict(entropy=1.0005), True),
        (dict(entropy=1.01), False),
        (dict(entropy=float('nan')), False),
    ],
    ids=str,
)
def test_edges_that_differ_are_refused(other, small):
    found = difference(with_edges(), with_edges(**other))
    assert (found.unmatched, found.score, found.box) == (0, 0, 0)
    assert found.is_small == small
