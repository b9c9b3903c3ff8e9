"""COCO evaluation: mmdet's metric and pycocotools as witnesses of ours with either backend."""

from __future__ import annotations

import copy
import json
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from pycocotools.cocoeval import COCOeval

import gfl_det
from gfl_det.compat import environment
from gfl_det.errors import ConfigError, DataError, SetupError
from gfl_det.evaluation import CocoMetric, coco_backends, coco_metric
from gfl_det.evaluation.calibration_metric import CalibrationMetric
from gfl_det.evaluation.coco_backends import FastCOCOeval, counts_alike
from gfl_det.registry import METRICS
from gfl_det.utils.timing import Runs
from projects.benchmark.detections import CocoSet, make_set
from projects.benchmark.evaluation import (
    Recorder,
    build_metric,
    compare,
    evaluation_rows,
    largest_difference,
    same_numbers,
)
from tests.helpers.paths import ROOT

needs_faster = pytest.mark.skipif(
    not environment.has_faster_coco_eval(),
    reason=f'{environment.FASTER_COCO_EVAL} is not installed',
)
BACKENDS = ['pycocotools', pytest.param('faster_coco_eval', marks=needs_faster)]
OPTIONS = {
    'defaults': {},
    'classwise': dict(classwise=True),
    'items': dict(metric_items=['mAP_75', 'AR@300', 'AR_l@1000', 'mAP']),
    'no items': dict(metric_items=[], classwise=True),
    'thresholds': dict(iou_thrs=np.array([0.3, 0.5, 0.62, 0.75, 0.8, 0.9]), classwise=True),
    'maximal numbers': dict(proposal_nums=(1, 10, 100), metric_items=['mAP', 'AR@100', 'AR@1000']),
    'few detections': dict(proposal_nums=(2, 5, 7), metric_items=['mAP_50', 'AR@300', 'mAP_s']),
    'proposals': dict(metric=['proposal', 'bbox']),
    'proposal items': dict(metric='proposal', metric_items=['AR_s@1000', 'AR@100']),
}


def make_samples(detections: dict[int, list[tuple]]) -> list[dict]:
    """Data samples of images; a detection is (x, y, w, h, score, label)."""
    samples = []
    for image, rows in detections.items():
        table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
        found = dict(bboxes=boxes, scores=table[:, 4], labels=table[:, 5].long())
        samples.append(dict(img_id=image, ori_shape=(200, 200), pred_instances=found))
    return samples


def make_drawn(
    gts: list[tuple], detections: dict[int, list[tuple]], category_ids: tuple = (1, 2)
) -> CocoSet:
    """A set drawn by hand; a gt box is (image, label, x, y, w, h) and 'crowd' for a crowd."""
    annotations = [
        dict(
            id=index + 1,
            image_id=image,
            category_id=category_ids[label],
            bbox=[x, y, w, h],
            area=w * h,
            iscrowd=int(bool(crowd)),
        )
        for index, (image, label, x, y, w, h, *crowd) in enumerate(gts)
    ]
    images = [dict(id=image, width=200, height=200) for image in detections]
    categories = [dict(id=each, name=f'c{index}') for index, each in enumerate(category_ids)]
    dataset = dict(images=images, annotations=annotations, categories=categories)
    return CocoSet(dataset, make_samples(detections))


@pytest.fixture
def drawn() -> CocoSet:
    """Crowds, equal scores, an image without gt boxes, one without detections, one without both."""
    gts = [
        (1, 0, 10, 10, 100, 100),
        (1, 0, 15, 15, 100, 100),
        (1, 1, 0, 0, 20, 20),
        (1, 1, 100, 100, 90, 90, 'crowd'),
        (3, 0, 50, 50, 10, 10),
        (3, 1, 60, 60, 0, 0),
        (5, 0, 0, 0, 200, 200, 'crowd'),
        (5, 0, 20, 20, 30, 30),
    ]
    detections = {
        1: [
            (12, 12, 100, 100, 0.9, 0),
            (12, 12, 101, 99, 0.9, 0),
            (14, 14, 100, 100, 0.9, 0),
            (0, 0, 21, 20, 0.5, 1),
            (110, 110, 20, 20, 0.5, 1),
            (130, 130, 20, 20, 0.5, 1),
            (1, 1, 20, 20, 0.25, 1),
        ],
        2: [(0, 0, 50, 50, 0.75, 0), (3, 3, 0, 0, 0.75, 1)],
        3: [],
        4: [],
        5: [(20, 20, 30, 30, 0.9, 0), (90, 90, 30, 30, 0.9, 0), (150, 150, 80, 80, 0.8, 0)],
    }
    return make_drawn(gts, detections)


def count(kind: type, coco_set: CocoSet, **options) -> dict[str, float]:
    metric = build_metric(kind, coco_set, **options)
    return metric.compute_metrics(metric.results)


class TestNumbers:
    @pytest.mark.parametrize('backend', BACKENDS)
    @pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
    def test_of_a_drawn_set_are_mmdets(self, drawn, options, backend):
        ours = count(CocoMetric, drawn, backend=backend, **options)
        assert same_numbers(ours, count(MMDetCocoMetric, drawn, **options))
        assert any(0 < value < 1 for value in ours.values())

    @pytest.mark.parametrize('backend', BACKENDS)
    @pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
    def test_of_a_random_set_are_mmdets(self, options, backend):
        coco_set = make_set(20, 30, 4, seed=1)
        ours = count(CocoMetric, coco_set, backend=backend, **options)
        assert same_numbers(ours, count(MMDetCocoMetric, coco_set, **options))

    @needs_faster
    def test_of_80_classes_agree_before_rounding(self):
        found = compare(make_set(60, 60, 80), classwise=True)
        assert found.difference < 1e-9
        assert found.agrees

    @needs_faster
    @pytest.mark.parametrize('seed', range(20))
    @pytest.mark.parametrize('metric', ['bbox', 'proposal'])
    def test_agree_before_rounding(self, drawn, seed, metric):
        coco_set = make_set(4, 12, 2, seed=seed) if seed else drawn
        for sample in coco_set.samples:  # of 256 scores, leave four
            sample['pred_instances']['scores'] = (
                sample['pred_instances']['scores'] * 4
            ).round() / 4
        evaluators = []
        for backend in ('pycocotools', 'faster_coco_eval'):
            recorder = build_metric(Recorder, coco_set, backend=backend, metric=metric)
            recorder.compute_metrics(recorder.results)
            evaluators.append(recorder.evaluator)
        assert [type(each) for each in evaluators] == [COCOeval, FastCOCOeval]
        assert len(evaluators[0].stats) == 12
        assert largest_difference(*evaluators) < 1e-9

    @pytest.mark.parametrize('backend', BACKENDS)
    def test_that_anyone_can_count(self, backend):
        """Of two gt boxes one is found, after a false alarm; a crowd takes in two detections."""
        gts = [(1, 0, 0, 0, 50, 50), (1, 0, 100, 0, 50, 50), (1, 1, 0, 100, 100, 100, 'crowd')]
        rows = [(0, 100, 50, 50, 0.9, 0), (0, 0, 50, 50, 0.8, 0)]
        crowded = [(0, 100, 30, 30, 0.9, 1), (50, 150, 30, 30, 0.9, 1)]
        coco_set = make_drawn(gts, {1: rows + crowded})
        found = count(
            CocoMetric,
            coco_set,
            backend=backend,
            classwise=True,
            metric_items=['mAP', 'mAP_m', 'mAP_s', 'AR@100'],
        )
        # Precision is 1/2 at the 51 recalls from 0 to .5 of 101; class c1 has only a crowd.
        assert found['c0_precision'] == pytest.approx(51 / 101 / 2, abs=5e-4)
        assert np.isnan(found['c1_precision'])
        assert found['bbox_mAP'] == found['bbox_mAP_m'] == found['c0_precision']
        assert found['bbox_mAP_s'] == -1
        assert found['bbox_AR@100'] == 0.5

    @pytest.mark.parametrize('backend', BACKENDS)
    def test_of_classes_whose_ids_descend(self, backend):
        gts = [(1, 0, 0, 0, 50, 50), (1, 1, 100, 100, 50, 50)]
        coco_set = make_drawn(gts, {1: [(0, 0, 50, 50, 0.9, 0)]}, category_ids=(7, 3))
        found = count(CocoMetric, coco_set, backend=backend, classwise=True)
        assert (found['c0_precision'], found['c1_precision']) == (1, 0)

    @pytest.mark.parametrize('backend', BACKENDS)
    @pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
    def test_of_a_class_that_the_file_does_not_list(self, options, backend, tmp_path):
        """mmdet's numbers of the file that lists it, without a box; its detections are kept."""
        gts = [(1, 0, 10, 10, 50, 50), (1, 2, 100, 100, 50, 50), (2, 2, 0, 0, 90, 90)]
        found = {
            1: [(10, 10, 50, 48, 0.9, 0), (10, 10, 50, 50, 0.8, 1), (100, 99, 50, 50, 0.7, 2)],
            2: [(0, 0, 90, 80, 0.6, 2), (0, 0, 90, 90, 0.5, 1)],
        }
        coco_set = make_drawn(gts, found, category_ids=(1, 4, 9))
        expected = count(MMDetCocoMetric, coco_set, **options)
        metric = build_metric(CocoMetric, coco_set, backend=backend, **options)
        entries = [each for each in coco_set.dataset['categories'] if each['id'] != 4]
        path = tmp_path / 'labels.json'
        path.write_text(json.dumps({**coco_set.dataset, 'categories': entries}))
        prefix = str(tmp_path / 'found')
        lacking = CocoMetric(ann_file=str(path), backend=backend, outfile_prefix=prefix, **options)
        lacking.dataset_meta = metric.dataset_meta
        assert same_numbers(lacking.compute_metrics(metric.results), expected)
        results = json.loads(Path(f'{prefix}.bbox.json').read_text())
        assert [each['category_id'] for each in results] == [1, 10, 9, 9, 10]

    @needs_faster
    @pytest.mark.parametrize('metric', ['bbox', 'proposal'])
    def test_of_some_of_the_files_classes(self, metric):
        coco_set = make_set(20, 30, 4, seed=2)
        for sample in coco_set.samples:
            found = sample['pred_instances']
            kept = found['labels'] < 2
            sample['pred_instances'] = {key: value[kept] for key, value in found.items()}
        numbers = []
        for kind in (CocoMetric, MMDetCocoMetric):
            instance = build_metric(kind, coco_set, metric=metric, classwise=True)
            instance.dataset_meta = dict(classes=coco_set.classes[:2])
            numbers.append(instance.compute_metrics(instance.results))
        assert same_numbers(*numbers)
        assert 'c2_precision' not in numbers[0]

    def test_of_fast_proposals_are_mmdets(self):
        """On images with equally many boxes: from NumPy 1.24 on, mmdet's code takes no others."""
        gts = [(1, 0, 0, 0, 50, 50), (2, 1, 100, 100, 50, 50)]
        rows = [(0, 0, 50, 50, 0.9, 0), (90, 100, 50, 50, 0.8, 0)]
        coco_set = make_drawn(gts, {1: rows, 2: rows})
        options = dict(metric='proposal_fast', proposal_nums=(1, 2, 3))
        ours = count(CocoMetric, coco_set, **options)
        assert same_numbers(ours, count(MMDetCocoMetric, coco_set, **options))
        assert ours == {'AR@1': 0.5, 'AR@2': pytest.approx(0.7), 'AR@3': pytest.approx(0.7)}

    def test_of_fast_proposals_on_images_with_different_numbers_of_boxes(self):
        gts = [(1, 0, 0, 0, 50, 50), (1, 0, 200, 200, 50, 50), (2, 1, 100, 100, 50, 50)]
        found = {1: [(0, 0, 50, 50, 0.9, 0)], 2: [(100, 100, 50, 50, 0.8, 1)], 3: []}
        coco_set = make_drawn(gts, found)
        options = dict(metric='proposal_fast', proposal_nums=(1,), iou_thrs=[0.5])
        assert count(CocoMetric, coco_set, **options) == {'AR@1': pytest.approx(2 / 3)}

    @pytest.mark.parametrize('thresholds', [0.5, [0.5, 0.75]])
    @pytest.mark.parametrize('backend', BACKENDS)
    def test_at_thresholds_in_any_form(self, drawn, thresholds, backend):
        options = dict(backend=backend, classwise=True)
        expected = count(CocoMetric, drawn, iou_thrs=np.atleast_1d(thresholds), **options)
        found = count(CocoMetric, drawn, iou_thrs=thresholds, **options)
        assert same_numbers(found, expected)
        assert found['bbox_mAP_50'] > 0


class TestInput:
    @pytest.mark.parametrize('backend', BACKENDS)
    def test_gts_of_the_samples_serve_without_a_file(self, backend):
        samples = make_samples({4: [(0, 0, 50, 50, 0.9, 0), (9, 9, 50, 50, 0.8, 1)], 6: []})
        for sample in samples:
            sample['instances'] = [dict(bbox=[0, 0, 50, 40], bbox_label=0, ignore_flag=0)]
        numbers = []
        for metric in (CocoMetric(backend=backend), MMDetCocoMetric()):
            metric.dataset_meta = dict(classes=('c0', 'c1'))
            for _ in range(2):  # two epochs
                metric.process({}, copy.deepcopy(samples))
                numbers.append(metric.evaluate(size=2))
        assert all(same_numbers(each, numbers[0]) for each in numbers)
        assert numbers[0]['coco/bbox_mAP_50'] == pytest.approx(0.505, abs=1e-3)

    @pytest.mark.parametrize('backend', BACKENDS)
    def test_nothing_detected(self, backend):
        empty = make_drawn([(1, 0, 0, 0, 50, 50)], {1: [], 2: []})
        options = dict(metric=['proposal', 'bbox'])
        assert count(CocoMetric, empty, backend=backend, **options) == {}
        assert count(MMDetCocoMetric, empty, **options) == {}

    @needs_faster
    def test_ids_of_text_are_left_to_pycocotools(self, drawn):
        for part, field in (('images', 'id'), ('annotations', 'image_id')):
            for entry in drawn.dataset[part]:
                entry[field] = f'img{entry[field]}'
        for sample in drawn.samples:
            sample['img_id'] = f'img{sample["img_id"]}'
        ours = count(CocoMetric, drawn, backend='faster_coco_eval')
        assert same_numbers(ours, count(MMDetCocoMetric, drawn))

    @pytest.mark.parametrize(
        ('part', 'change'),
        [
            ('images', dict(id='x')),
            ('categories', dict(id='x')),
            ('annotations', dict(id=2.0)),
            ('annotations', dict(area=None)),
            ('annotations', dict(iscrowd=None)),
            ('detections', dict(score=float('nan'))),
        ],
    )
    def test_what_would_not_count_alike(self, drawn, part, change):
        metric = build_metric(CocoMetric, drawn)
        detections = [dict(score=0.5), dict(score=0.0)]
        assert counts_alike(metric._coco_api, detections)
        entry = (detections if part == 'detections' else metric._coco_api.dataset[part])[1]
        entry.update(change)
        for field in [field for field, value in entry.items() if value is None]:
            del entry[field]
        assert not counts_alike(metric._coco_api, detections)

    @pytest.mark.parametrize('area', ['absent', None, 'large', '10000', -1, float('nan'), [1]])
    @pytest.mark.parametrize('backend', BACKENDS)
    def test_an_area_that_is_no_size_is_that_of_the_box(self, drawn, area, backend):
        expected = count(CocoMetric, drawn, backend=backend)
        drawn.dataset['annotations'][0]['area'] = area
        if area == 'absent':
            del drawn.dataset['annotations'][0]['area']
        assert same_numbers(count(CocoMetric, drawn, backend=backend), expected)

    @pytest.mark.parametrize('crowd', ['absent', None, '0', False, 0.0, [1]])
    @pytest.mark.parametrize('backend', BACKENDS)
    def test_an_iscrowd_that_is_no_mark_is_0(self, drawn, crowd, backend):
        expected = count(CocoMetric, drawn, backend=backend)
        drawn.dataset['annotations'][0]['iscrowd'] = crowd
        if crowd == 'absent':
            del drawn.dataset['annotations'][0]['iscrowd']
        assert same_numbers(count(CocoMetric, drawn, backend=backend), expected)


def renumbered(coco_set: CocoSet, image, category, annotation) -> CocoSet:
    """The same set with other ids, by three functions."""
    dataset = copy.deepcopy(coco_set.dataset)
    for entry in dataset['images']:
        entry['id'] = image(entry['id'])
    for entry in dataset['categories']:
        entry['id'] = category(entry['id'])
    for entry in dataset['annotations']:
        entry['id'] = annotation(entry['id'])
        entry['image_id'] = image(entry['image_id'])
        entry['category_id'] = category(entry['category_id'])
    samples = [{**each, 'img_id': image(each['img_id'])} for each in coco_set.samples]
    return CocoSet(dataset, samples)


IDS = {
    'from 0': lambda each: each - 1,
    'negative': lambda each: -each,
    'large': lambda each: 2**53 + each,
    'huge': lambda each: 2**70 + each,
    'texts': lambda each: f'id {each}',
    'fractions': lambda each: each + 0.5,
    'mixed': lambda each: each if each % 2 else str(each),
}


class TestIds:
    @pytest.mark.parametrize('name', IDS)
    @pytest.mark.parametrize('backend', BACKENDS)
    def test_are_labels(self, drawn, name, backend, tmp_path):
        """mmdet's numbers of the set with ids from 1, whatever the ids are; results have these."""
        other = renumbered(drawn, *[IDS[name]] * 3)
        expected = count(MMDetCocoMetric, drawn, classwise=True)
        prefix = str(tmp_path / 'found')
        found = count(CocoMetric, other, backend=backend, classwise=True, outfile_prefix=prefix)
        assert same_numbers(found, expected)
        results = json.loads(Path(f'{prefix}.bbox.json').read_text())
        assert {each['image_id'] for each in results} == {IDS[name](each) for each in (1, 2, 5)}
        assert {each['category_id'] for each in results} == {IDS[name](each) for each in (1, 2)}

    @pytest.mark.parametrize('number', [0, 1, -7, 2**64, 'a', 0.0])
    def test_a_box_found_exactly_is_found(self, number):
        coco_set = make_drawn([(1, 0, 10, 20, 50, 40)], {1: [(10, 20, 50, 40, 0.9, 0)]})
        coco_set.dataset['annotations'][0]['id'] = number
        assert count(CocoMetric, coco_set)['bbox_mAP'] == 1


def with_names(coco_set: CocoSet, folder: str) -> CocoSet:
    """The same set, whose images have files in a folder."""
    images = [{**each, 'file_name': f'{each["id"]}.png'} for each in coco_set.dataset['images']]
    samples = [
        {**each, 'img_path': f'/data/{folder}/{each["img_id"]}.png'} for each in coco_set.samples
    ]
    return CocoSet({**coco_set.dataset, 'images': images}, samples)


def subset(coco_set: CocoSet, images: set) -> CocoSet:
    """Some of the images, in the file and in the samples."""
    dataset = {
        **coco_set.dataset,
        'images': [each for each in coco_set.dataset['images'] if each['id'] in images],
        'annotations': [e for e in coco_set.dataset['annotations'] if e['image_id'] in images],
    }
    return CocoSet(dataset, [each for each in coco_set.samples if each['img_id'] in images])


class TestImagesShown:
    def test_those_of_a_larger_file_alone_count(self):
        whole = with_names(make_set(12, 30, 4, seed=3), 'val')
        part = subset(whole, {2, 3, 7, 11})
        expected = count(MMDetCocoMetric, part)
        assert same_numbers(count(CocoMetric, CocoSet(whole.dataset, part.samples)), expected)
        assert count(MMDetCocoMetric, whole) != expected

    def test_each_counts_once(self):
        coco_set = with_names(make_set(6, 30, 4, seed=3), 'val')
        twice = CocoSet(coco_set.dataset, coco_set.samples * 2)
        assert same_numbers(count(CocoMetric, twice), count(MMDetCocoMetric, coco_set))

    def test_other_files_under_the_same_ids_are_refused_by_name(self):
        coco_set = with_names(make_set(6, 30, 4, seed=3), 'val')
        for sample in coco_set.samples:
            sample['img_path'] = sample['img_path'].replace('/val/', '/val/other_')
        with pytest.raises(DataError, match=r"6 images .* /data/val/other_1\.png .*'1\.png'"):
            count(CocoMetric, coco_set)

    def test_files_are_found_by_name_under_other_ids(self):
        """Data sets whose ids all start at 1, joined and judged by a file with ids of its own."""
        coco_set = with_names(make_set(6, 30, 4, seed=3), 'val')
        expected = count(MMDetCocoMetric, coco_set)
        for sample in coco_set.samples[3:]:
            sample['img_id'] -= 3
        assert same_numbers(count(CocoMetric, coco_set), expected)

    def test_samples_without_gt_need_a_file(self):
        metric = CocoMetric()
        with pytest.raises(ConfigError, match='give it an ann_file'):
            metric.process({}, make_samples({1: []}))

    @pytest.mark.parametrize('with_paths', [True, False])
    def test_gts_of_samples_whose_ids_collide_stay_apart(self, with_paths):
        samples = make_samples({1: [(0, 0, 50, 50, 0.9, 0)], 2: [(9, 9, 50, 50, 0.8, 1)]})
        samples[0]['instances'] = [dict(bbox=[0, 0, 50, 50], bbox_label=0)]
        samples[1]['instances'] = [dict(bbox=[9, 9, 59, 59], bbox_label=1)]
        samples[1]['img_id'] = 1
        for sample, folder in zip(samples, 'ab'):
            if with_paths:
                sample['img_path'] = f'{folder}/1.png'
        metric = CocoMetric()
        metric.dataset_meta = dict(classes=('c0', 'c1'))
        metric.process({}, samples)
        assert metric.evaluate(size=2)['coco/bbox_mAP'] == 1


class TestNumbersOfDetections:
    """Precision at the largest of ``proposal_nums``; the witness is mmdet's with the best few."""

    @pytest.mark.parametrize('backend', BACKENDS)
    @pytest.mark.parametrize('numbers', [(2, 5, 7), (7,), 7, [5, 7], (7, 2), (1, 2, 5, 7)])
    def test_precision_is_that_at_the_largest(self, numbers, backend, capsys):
        coco_set = make_set(20, 60, 2, seed=1)
        few = copy.deepcopy(coco_set)
        for sample in few.samples:
            found = sample['pred_instances']
            best = [torch.nonzero(found['labels'] == label)[:7, 0] for label in (0, 1)]
            kept = torch.cat(best).sort().values
            sample['pred_instances'] = {key: value[kept] for key, value in found.items()}
        items = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
        expected = count(MMDetCocoMetric, few, metric_items=items)
        capsys.readouterr()
        options = dict(backend=backend, proposal_nums=numbers, metric_items=items)
        assert same_numbers(count(CocoMetric, coco_set, **options), expected)
        assert 0 < expected['bbox_mAP'] < count(CocoMetric, coco_set)['bbox_mAP']
        assert 'AP' in capsys.readouterr().out

    def test_the_table_says_which(self, drawn, capsys):
        metric = build_metric(CocoMetric, drawn, proposal_nums=(1, 10, 300))
        metric.compute_metrics(metric.results)
        printed = capsys.readouterr().out
        assert len(re.findall(r'\(AP\) .*maxDets=300 ', printed)) == 6

    @pytest.mark.parametrize('wrong', [(), 0, -1, (1, 0), 'all', (1, '10'), 2.5, None, True, [[1]]])
    def test_what_is_no_number_is_refused_as_the_metric_is_built(self, wrong):
        with pytest.raises(ConfigError, match='proposal_nums='):
            CocoMetric(proposal_nums=wrong)


class TestOutput:
    @pytest.mark.parametrize('backend', BACKENDS)
    def test_cocos_table_and_that_of_the_classes(self, drawn, backend, capsys, monkeypatch):
        logged: list[str] = []
        monkeypatch.setattr(coco_metric, 'print_log', lambda text, *_: logged.append(text))
        count(CocoMetric, drawn, backend=backend, classwise=True)
        printed = capsys.readouterr().out
        rows = re.findall(r'Average (?:Precision|Recall) .* = -?[\d.]+', printed)
        assert len(rows) == 12
        assert rows[0].startswith('Average Precision  (AP) @[ IoU=0.50:0.95')
        assert logged[0] == 'Evaluating bbox...'
        assert '| c1 ' in logged[1]
        assert logged[2] == 'bbox_mAP_copypaste: 0.447 0.472 0.472 0.379 -1.000 0.900'

    @pytest.mark.parametrize('backend', BACKENDS)
    @pytest.mark.parametrize(
        'options', [{}, dict(format_only=True)], ids=['counted', 'only written']
    )
    def test_the_file_of_detections_is_mmdets(self, drawn, backend, options, tmp_path):
        ours, theirs = str(tmp_path / 'ours'), str(tmp_path / 'theirs')
        found = count(CocoMetric, drawn, backend=backend, outfile_prefix=ours, **options)
        assert same_numbers(found, count(MMDetCocoMetric, drawn, outfile_prefix=theirs, **options))
        files = [json.loads(Path(f'{prefix}.bbox.json').read_text()) for prefix in (ours, theirs)]
        assert files[0] == files[1]
        assert len(files[0]) == 12


class TestBackend:
    def test_auto_takes_the_fast_one_where_it_is(self, monkeypatch):
        for is_there, expected in ((True, 'faster_coco_eval'), (False, 'pycocotools')):
            monkeypatch.setattr(coco_backends, 'has_faster_coco_eval', lambda there=is_there: there)
            assert CocoMetric().backend == expected
            assert CocoMetric(backend='pycocotools').backend == 'pycocotools'

    def test_the_fast_one_by_name_and_missing(self, monkeypatch):
        monkeypatch.setattr(coco_backends, 'has_faster_coco_eval', lambda: False)
        with pytest.raises(SetupError, match=r'pip install gfl_det\[faster\]') as caught:
            CocoMetric(backend='faster_coco_eval')
        assert '\n' not in str(caught.value)

    @pytest.mark.parametrize(
        ('version', 'expected'),
        [('1.6.4', False), ('1.6.5', True), ('1.8.0', True), ('1.9.0', False), (None, False)],
    )
    def test_only_versions_that_were_compared_count(self, version, expected, monkeypatch):
        def tell(name: str) -> str:
            assert name == 'faster-coco-eval'
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, 'version', tell)
        assert environment.has_faster_coco_eval() == expected

    def test_setup_asks_for_these_versions(self):
        text = (ROOT / 'setup.py').read_text()
        assert f"'faster': ['{environment.FASTER_COCO_EVAL}']" in text

    def test_unknown_values_are_named(self):
        with pytest.raises(ConfigError, match=r"'fast' .* faster_coco_eval"):
            CocoMetric(backend='fast')
        with pytest.raises(ConfigError, match=r"'mAP_xl'.* AR_l@1000"):
            CocoMetric(metric_items=['mAP', 'mAP_xl'])

    @pytest.mark.parametrize('name', ['gfl_r18_fpn_digits', 'gfl_r18_fpn_bccd'])
    def test_configs_name_it(self, name, drawn, tmp_path):
        path = tmp_path / 'val.json'
        path.write_text(json.dumps(drawn.dataset))
        cfg = gfl_det.get_config(name)
        for settings in (cfg.val_evaluator, cfg.test_evaluator):
            metric = METRICS.build({**settings, 'ann_file': str(path)})
            assert type(metric) is CocoMetric
            assert metric.metrics == ['bbox']


def test_rows_of_the_benchmark():
    rows = evaluation_rows(8, Runs())
    assert [row.name.split(', ')[2] for row in rows][:1] == ['pycocotools']
    assert all(row.theirs > 0 and row.ours > 0 for row in rows)


class TestSyntheticSet:
    def test_is_what_was_asked_for(self):
        coco_set = make_set(30, 25, 6)
        assert len(coco_set.samples) == len(coco_set.dataset['images']) == 30
        assert coco_set.classes == ('c0', 'c1', 'c2', 'c3', 'c4', 'c5')
        for sample in coco_set.samples:
            found = sample['pred_instances']
            assert found['bboxes'].shape == (25, 4)
            assert (found['bboxes'][:, 2:] > found['bboxes'][:, :2]).all()
            assert found['scores'].diff().max() <= 0
            assert 0 <= found['labels'].min() <= found['labels'].max() < 6
        ids = [entry['id'] for entry in coco_set.dataset['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        assert any(entry['iscrowd'] for entry in coco_set.dataset['annotations'])

    def test_depends_on_the_seed_alone(self):
        one, same, other = (make_set(3, 5, 2, seed=seed) for seed in (4, 4, 5))
        assert one.dataset == same.dataset != other.dataset
        for a, b in zip(one.samples, same.samples):
            assert all(
                (a['pred_instances'][key] == value).all()
                for key, value in b['pred_instances'].items()
            )


class TestIntervals:
    def test_are_around_the_numbers_and_those_of_the_calibration_metric(self):
        coco_set = make_set(30, 20, 3)
        plain = count(CocoMetric, coco_set, classwise=True)
        found = count(CocoMetric, coco_set, classwise=True, resamples=100, seed=1)
        assert {name: found[name] for name in plain} == plain
        ends = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')
        classes = [name for name in plain if name.endswith('_precision')]
        assert set(found) - set(plain) == {
            f'{name}_{end}' for name in (*ends, *classes) for end in ('low', 'high')
        }
        other = count(CalibrationMetric, coco_set, resamples=100, seed=1)
        for name, theirs in zip(ends, ('AP', 'AP50', 'AP75')):
            assert found[f'{name}_low'] < found[name] < found[f'{name}_high']
            assert found[f'{name}_low'] == pytest.approx(other[f'{theirs}_low'], abs=6e-4)

    def test_images_and_classes_in_any_order(self, drawn):
        """Ids that do not ascend, an image that is not shown, a class that is not detected."""
        drawn.dataset['images'] = drawn.dataset['images'][::-1]
        drawn.samples[:] = drawn.samples[1:]
        whole = count(CocoMetric, drawn, resamples=50)
        shown = {each['img_id'] for each in drawn.samples}
        for part, key in (('images', 'id'), ('annotations', 'image_id')):
            drawn.dataset[part] = [each for each in drawn.dataset[part] if each[key] in shown]
        assert count(CocoMetric, drawn, resamples=50) == whole

    def test_other_thresholds_are_refused(self, drawn):
        with pytest.raises(ConfigError, match=r'resamples=9 .*iou_thrs'):
            count(CocoMetric, drawn, resamples=9, iou_thrs=[0.5])
