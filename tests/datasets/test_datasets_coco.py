"""The checked COCO data set: mmdet's samples from sound files, one sentence for each bad one."""

from __future__ import annotations

import json
import logging
import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from gfl_det.datasets import CocoDataset
from gfl_det.datasets.annotations import absent_text
from gfl_det.errors import DataError
from gfl_det.registry import DATASETS

MMDetCocoDataset = DATASETS.get('mmdet.CocoDataset')
CLASSES = ('cat', 'dog', 'owl')
PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'PackDetInputs', 'meta_keys': ('img_id', 'img_path', 'ori_shape')},
]


@pytest.fixture(autouse=True)
def default_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def logs(caplog, monkeypatch):
    """What was logged to mmengine's current logger, as (level, text)."""
    lines: list[tuple[int, str]] = []
    monkeypatch.setattr(
        'gfl_det.datasets.coco.print_log',
        lambda message, logger, level: lines.append((level, message)),
    )
    return lines


def sound() -> dict:
    """Five images: three with boxes (one of a crowd), one empty, one small."""
    sizes = {1: (64, 48), 2: (64, 48), 3: (48, 64), 4: (64, 48), 5: (20, 20)}
    images = [
        {'id': 10 * i, 'file_name': f'{i}.png', 'width': w, 'height': h}
        for i, (w, h) in sizes.items()
    ]
    boxes = [
        (10, 5, [4, 4, 20, 20], 0),
        (10, 7, [30.5, 10.25, 20, 30], 0),
        (20, 9, [0, 0, 64, 48], 0),
        (30, 5, [1, 1, 40, 40], 1),
        (50, 5, [1, 1, 10, 10], 0),
        (10, 9, [-5, -5, 30, 30], 0),
    ]
    return {
        'images': images,
        'categories': [{'id': 5 + 2 * i, 'name': name} for i, name in enumerate(CLASSES)],
        'annotations': [
            {
                'id': i,
                'image_id': image,
                'category_id': category,
                'bbox': bbox,
                'area': bbox[2] * bbox[3],
                'iscrowd': crowd,
            }
            for i, (image, category, bbox, crowd) in enumerate(boxes, start=1)
        ],
    }


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / 'img').mkdir()
    rng = np.random.default_rng(0)
    for image in sound()['images']:
        pixels = rng.integers(0, 256, (image['height'], image['width'], 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'img' / image['file_name']), pixels)
    return tmp_path


def build(root: Path, content: dict | str | None = None, cls=CocoDataset, **options):
    text = content if isinstance(content, str) else json.dumps(content or sound())
    (root / 'labels.json').write_text(text)
    defaults = {
        'data_root': str(root),
        'ann_file': 'labels.json',
        'data_prefix': {'img': 'img/'},
        'metainfo': {'classes': CLASSES},
        'pipeline': PIPELINE,
    }
    return cls(**{**defaults, **options})


def refused(root: Path, content=None, **options) -> str:
    with pytest.raises(DataError) as caught:
        build(root, content, **options)
    assert 'labels.json' in str(caught.value)
    assert '\n' not in str(caught.value)
    return str(caught.value)


class TestSoundFiles:
    @pytest.mark.parametrize('test_mode', [False, True])
    @pytest.mark.parametrize('serialize_data', [False, True])
    @pytest.mark.parametrize(
        'options',
        [
            {},
            {'filter_cfg': {'filter_empty_gt': True, 'min_size': 32}},
            {'filter_cfg': {'filter_empty_gt': False, 'min_size': 32}},
            {'metainfo': {'classes': ('dog',)}, 'filter_cfg': {'filter_empty_gt': True}},
            {'indices': 2},
            {'indices': -2},
            {'indices': [2, 0]},
            {'return_classes': True},
        ],
    )
    def test_gives_mmdets_records(self, root, logs, options, serialize_data, test_mode):
        options = {**options, 'serialize_data': serialize_data, 'test_mode': test_mode}
        ours = build(root, **options)
        theirs = build(root, cls=MMDetCocoDataset, **options)
        assert len(ours) == len(theirs) > 0
        for index in range(len(theirs)):
            assert ours.get_data_info(index) == theirs.get_data_info(index)
            assert ours.get_cat_ids(index) == theirs.get_cat_ids(index)
        assert ours.metainfo == theirs.metainfo
        assert (ours.cat_ids, ours.cat2label) == (theirs.cat_ids, theirs.cat2label)
        assert all(ours.cat_img_map[i] == theirs.cat_img_map[i] for i in ours.cat_ids)

    def test_gives_mmdets_samples(self, root):
        ours, theirs = build(root)[0], build(root, cls=MMDetCocoDataset)[0]
        assert ours['inputs'].equal(theirs['inputs'])
        gts, expected = (s['data_samples'].gt_instances for s in (ours, theirs))
        assert gts.bboxes.tensor.equal(expected.bboxes.tensor)
        assert gts.labels.equal(expected.labels)

    def test_images_beside_the_annotations_need_no_prefix(self, root):
        expected = build(root).get_data_info(0)['img_path']
        dataset = CocoDataset(
            data_root=str(root / 'img'),
            ann_file='../labels.json',
            metainfo={'classes': CLASSES},
            pipeline=[],
        )
        assert Path(dataset.get_data_info(0)['img_path']) == Path(expected)

    def test_is_registered_under_our_prefix_and_leaves_mmdets_alone(self):
        assert DATASETS.get('gfl_det.CocoDataset') is CocoDataset
        assert MMDetCocoDataset.__module__ == 'mmdet.datasets.coco'
        assert issubclass(CocoDataset, MMDetCocoDataset)

    def test_reads_when_asked_and_not_before(self, root):
        dataset = build(root, 'no JSON', lazy_init=True)
        assert dataset.box_report is None
        with pytest.raises(DataError, match='not valid JSON'):
            dataset.full_init()

    def test_subsets_and_copies_between_processes(self, root):
        dataset = build(root)
        assert len(dataset.get_subset(2)) == 2
        assert pickle.loads(pickle.dumps(dataset)).get_data_info(1) == dataset.get_data_info(1)

    def test_a_sound_file_is_loaded_without_a_warning(self, root, logs):
        build(root, filter_cfg={'filter_empty_gt': False})
        assert [text for level, text in logs if level >= logging.WARNING] == []


class TestTheFile:
    def test_missing(self, root):
        with pytest.raises(DataError, match=r'absent\.json .*data_root'):
            build(root, ann_file='absent.json')

    def test_a_folder(self, root):
        with pytest.raises(DataError, match=r'img.* cannot be read'):
            build(root, ann_file='img')

    def test_no_json(self, root):
        assert 'is not valid JSON' in refused(root, '{"images": [}')

    def test_another_structure(self, root):
        assert 'has no list "categories"' in refused(root, {**sound(), 'categories': None})

    def test_class_names_that_do_not_match(self, root):
        message = refused(root, metainfo={'classes': ('Cat', 'dog', 'owl')})
        assert "'Cat' (nearest: 'cat')" in message

    def test_cocos_classes_for_a_file_of_ones_own(self, root):
        message = refused(root, metainfo=None)
        assert "['cat', 'dog', 'owl']" in message
        assert '... 80 in all]' in message
        assert 'Set metainfo=dict(classes=(...))' in message

    def test_unknown_ids(self, root):
        dataset = sound()
        dataset['annotations'][3]['category_id'] = 4
        assert 'annotations 1 (id 4) have the category_id 4' in refused(root, dataset)
        dataset = sound()
        dataset['annotations'][3]['image_id'] = 31
        assert 'annotations 1 (id 4) have the image_id 31' in refused(root, dataset)

    def test_ids_that_occur_twice(self, root):
        dataset = sound()
        dataset['annotations'][3]['id'] = 1
        assert 'annotations have duplicate ids' in refused(root, dataset)


class TestBadBoxes:
    bad = (
        [4, 4, 0, 20],
        [4, 4, -3, 20],
        [64, 4, 10, 10],
        [math.nan, 4, 10, 10],
        [4, math.inf, 10, 10],
        ['x', 4, 10, 10],
    )

    def with_bad_boxes(self, image_id: int) -> dict:
        dataset = sound()
        template = dataset['annotations'][0]
        for number, bbox in enumerate(self.bad, start=100):
            dataset['annotations'].append(
                {**template, 'id': number, 'bbox': bbox, 'image_id': image_id}
            )
        return dataset

    def test_are_dropped_with_one_counted_warning(self, root, logs):
        dataset = build(root, self.with_bad_boxes(10))
        (warning,) = [text for level, text in logs if level == logging.WARNING]
        assert 'labels.json: 6 of 12 boxes cannot be used and are dropped' in warning
        assert 'zero or negative width or height: 2 (id 100, 101)' in warning
        assert 'wholly outside the image: 1 (id 102)' in warning
        assert 'NaN or infinite coordinates: 2 (id 103, 104)' in warning
        assert 'bbox is not four numbers [x, y, width, height]: 1 (id 105)' in warning
        for index in range(len(dataset)):
            boxes = dataset[index]['data_samples'].gt_instances.bboxes.tensor
            assert boxes.isfinite().all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()

    def test_in_a_test_set_the_metric_is_said_to_count_them(self, root, logs):
        build(root, self.with_bad_boxes(10), test_mode=True)
        assert 'a metric that reads this file by itself still counts them' in logs[0][1]

    def test_an_image_with_only_bad_boxes_has_no_object(self, root, logs):
        dataset = build(
            root, self.with_bad_boxes(40), filter_cfg={'filter_empty_gt': True, 'min_size': 32}
        )
        assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == [10, 20, 30]

    def test_boxes_partly_outside_stay_as_they_are(self, root, logs):
        dataset = build(root)
        boxes = [instance['bbox'] for instance in dataset.get_data_info(0)['instances']]
        assert [-5, -5, 25, 25] in boxes
        assert any('outside their image, kept: 1 (id 6)' in text for _, text in logs)

    def test_a_missing_area_field_is_filled_in(self, root, logs):
        content = sound()
        for annotation in content['annotations']:
            del annotation['area']
        assert len(build(root, content).get_data_info(0)['instances']) == 3
        assert any('without a usable area field' in text for _, text in logs)


class TestNothingLeft:
    def test_images_left_out_are_counted(self, root, logs):
        build(root, filter_cfg={'filter_empty_gt': True, 'min_size': 32})
        text = next(text for _, text in logs if 'left out' in text)
        assert '2 of 5 images are left out: 1 with a side below min_size=32 px, 1 without' in text
        assert 'filter_empty_gt=True' in text

    def test_all_images_too_small(self, root):
        message = refused(root, filter_cfg={'filter_empty_gt': False, 'min_size': 1000})
        assert 'nothing to train on: 5 of 5 images' in message
        assert '5 with a side below min_size=1000 px' in message

    def test_all_boxes_bad(self, root):
        content = sound()
        for annotation in content['annotations']:
            annotation['bbox'] = [5, 5, 0, 0]
        message = refused(root, content, filter_cfg={'filter_empty_gt': True})
        assert '6 boxes in the file' in message
        assert 'zero or negative width or height: 6 (id 1, 2, 3, ...)' in message

    def test_all_areas_of_zero(self, root):
        """mmdet drops each of these boxes, and trains on background without a word."""
        content = sound()
        for annotation in content['annotations']:
            annotation['area'] = 0
        message = refused(root, content)
        assert 'area field of zero or less: 6' in message
        assert 'gfl-det check' in message
        assert len(build(root, content, test_mode=True)) == len(content['images'])

    def test_all_boxes_of_other_classes(self, root):
        content = sound()
        content['categories'].append({'id': 1, 'name': 'yak'})
        message = refused(
            root, content, metainfo={'classes': ('yak',)}, filter_cfg={'filter_empty_gt': True}
        )
        assert 'boxes of classes that metainfo does not list: 6' in message

    @pytest.mark.parametrize('test_mode', [False, True])
    def test_a_class_that_the_file_does_not_list_has_no_box(self, root, logs, test_mode):
        classes = (CLASSES[0], 'yak', *CLASSES[1:])
        options = {'metainfo': {'classes': classes}, 'test_mode': test_mode}
        ours = build(root, **options)
        listing = sound()
        listing['categories'].insert(1, {'id': 99, 'name': 'yak'})
        theirs = build(root, listing, cls=MMDetCocoDataset, **options)
        for index in range(len(theirs)):
            infos = [each.get_data_info(index) for each in (ours, theirs)]
            assert infos[0]['instances'] == infos[1]['instances']
        assert (logging.WARNING, f'{root}/labels.json: {absent_text(["yak"])}') in logs

    @pytest.mark.parametrize('test_mode', [False, True])
    def test_no_images(self, root, test_mode):
        empty = {**sound(), 'images': [], 'annotations': []}
        assert 'lists no images' in refused(root, empty, test_mode=test_mode)

    def test_no_annotations_stop_a_training_that_wants_them(self, root):
        content = sound()
        del content['annotations']
        message = refused(root, content, filter_cfg={'filter_empty_gt': True})
        assert 'has no list "annotations"' in message

    @pytest.mark.parametrize('options', [{'test_mode': True}, {}])
    def test_images_alone_serve_for_tests_and_as_background(self, root, logs, options):
        content = sound()
        del content['annotations']
        assert len(build(root, content, **options)) == 5
        warned = any('every image is background' in text for _, text in logs)
        assert warned is not options.get('test_mode', False)

    @pytest.mark.parametrize('indices', [0, []])
    @pytest.mark.parametrize('serialize_data', [False, True])
    def test_indices_that_select_nothing(self, root, indices, serialize_data):
        message = refused(root, indices=indices, serialize_data=serialize_data)
        assert f'indices={indices} selects no image' in message


class TestImageFiles:
    def faulty(self, root: Path, fault: str) -> CocoDataset:
        dataset = build(root)
        path = root / 'img' / '2.png'
        if fault == 'missing':
            path.unlink()
        elif fault == 'empty':
            path.write_bytes(b'')
        elif fault == 'torn':
            path.write_bytes(path.read_bytes()[:500])
        else:
            path.write_text('<html>404</html>')
        return dataset

    @pytest.mark.parametrize('fault', ['missing', 'empty', 'torn', 'other'])
    def test_a_bad_file_is_named_with_its_image_id(self, root, fault):
        dataset = self.faulty(root, fault)
        with pytest.raises(DataError) as caught:
            dataset[1]
        message = str(caught.value)
        what = 'does not exist' if fault == 'missing' else 'is damaged or not a readable image'
        assert f'{root}/img/2.png {what}' in message
        assert 'image id 20 of' in message
        assert 'labels.json' in message

    def test_the_sentence_comes_through_the_workers_of_a_loader(self, root):
        loader = DataLoader(self.faulty(root, 'torn'), num_workers=1, collate_fn=pseudo_collate)
        with pytest.raises(DataError, match=r'2\.png .*image id 20'):
            list(loader)

    def test_the_error_can_be_pickled(self, root):
        dataset = self.faulty(root, 'missing')
        with pytest.raises(DataError) as caught:
            dataset[1]
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_a_pipeline_told_to_skip_missing_files_does(self, root):
        self.faulty(root, 'missing')
        tolerant = [{'type': 'LoadImageFromFile', 'ignore_empty': True}, *PIPELINE[1:]]
        assert build(root, pipeline=tolerant)[1]['data_samples'].img_id != 20

    def test_an_error_of_another_origin_passes_unchanged(self, root):
        def broken_step(results: dict) -> dict:
            raise KeyError('a programming error')

        dataset = build(root, pipeline=[*PIPELINE[:1], broken_step])
        with pytest.raises(KeyError, match='a programming error'):
            dataset[0]
