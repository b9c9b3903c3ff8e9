"""What the check of a data set finds, what a repaired file holds, and how the tool ends."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

import gfl_det
from gfl_det.cli import check_dataset
from gfl_det.datasets import CocoDataset, coco
from gfl_det.datasets.annotations import check_ids, check_structure, usable_boxes
from gfl_det.datasets.checks import check as checking
from gfl_det.datasets.checks import image_files
from gfl_det.datasets.checks.check import AnnotationSource, Decoding, Report, check_file
from gfl_det.datasets.checks.draft import Finding
from gfl_det.engine import preflight
from gfl_det.engine.reach import advice
from gfl_det.engine.reach.advice import check_priors
from gfl_det.errors import ConfigError, DataError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.registry import TASK_UTILS
from gfl_det.utils import pixels
from tests.helpers.commands import run_tool
from tests.helpers.paths import ROOT

WIDTH, HEIGHT = 64, 48


def box(number: int, image: int, bbox: list, category: int = 1, **fields) -> dict:
    area = bbox[2] * bbox[3] if len(bbox) == 4 and all(map(np.isreal, bbox)) else 1
    entry = dict(id=number, image_id=image, category_id=category, bbox=bbox, area=area, iscrowd=0)
    return {**entry, **fields}


def sound() -> dict:
    """Four images of 64 x 48 with two boxes each, of two classes."""
    return dict(
        info=dict(year=2020),
        images=[dict(id=i, file_name=f'{i}.png', width=WIDTH, height=HEIGHT) for i in range(1, 5)],
        annotations=[
            box(10 * i + k, i, [5 + i, 6 + k, 20 + k, 16], category=k)
            for i in range(1, 5)
            for k in (1, 2)
        ],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )


def check(place: Path, dataset: object, **source) -> Report:
    path = place / 'labels.json'
    path.write_text(dataset if isinstance(dataset, str) else json.dumps(dataset))
    return check_file(AnnotationSource('', str(path), **source))


def against(cfg: Config, pipeline: Sequence[dict] = ()) -> partial:
    return partial(check_priors, cfg=cfg, pipeline=pipeline)


def codes(report: Report) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings}


def assert_repaired(folder: Path, report: Report, **source) -> dict:
    """A repaired file has nothing left to repair, and our data set reads it."""
    again = check(folder, report.repaired, **source)
    assert [each for each in again.findings if each.fix] == []
    check_structure(report.repaired, 'repaired')
    check_ids(report.repaired, 'repaired')
    return report.repaired


def change(dataset: dict, key: str, index: int, **fields) -> dict:
    dataset[key][index] = {**dataset[key][index], **fields}
    return dataset


def without(dataset: dict, key: str, index: int, field: str) -> dict:
    del dataset[key][index][field]
    return dataset


def test_a_super_category_that_is_dropped_is_no_class(tmp_path):
    plain = check(tmp_path, sound(), classes=('cat', 'dog'))
    dataset = sound()
    dataset['categories'].insert(0, dict(id=0, name='pets'))
    report = check(tmp_path, dataset, classes=('cat', 'dog'))
    assert [each.name for each in report.classes] == ['pets', 'cat', 'dog']
    assert report.trained_classes() == plain.classes


class TestASoundFile:
    def test_nothing_is_found_and_nothing_changes(self, tmp_path):
        dataset = sound()
        report = check(tmp_path, dataset, classes=('cat', 'dog'))
        assert report.findings == []
        assert report.repaired == dataset
        assert (report.images, report.boxes) == (4, 8)
        assert report.classes == [('cat', 4, 4), ('dog', 4, 4)]

    @pytest.mark.parametrize('text', ['', '{', '[1]', '{"images": []}', '{"images": 3}', 'null'])
    def test_a_file_of_another_kind_is_one_error(self, tmp_path, text):
        report = check(tmp_path, text)
        assert [(each.level, each.code) for each in report.findings] == [('error', 'file')]
        assert 'labels.json' in report.findings[0].text
        assert report.repaired is None


FAULTS = [
    # what is done, code, level, ids found, images and boxes left
    (lambda d: d['images'].append(5) or d, 'images.kind', 'error', [4], 4, 8),
    (lambda d: d['annotations'].append(None) or d, 'annotations.kind', 'error', [8], 4, 8),
    (lambda d: without(d, 'images', 1, 'id'), 'images.id', 'error', [1], 3, 6),
    (lambda d: change(d, 'images', 1, id=[2]), 'images.id', 'error', [1], 3, 6),
    (lambda d: without(d, 'images', 1, 'file_name'), 'images.file_name', 'error', [2], 3, 6),
    (lambda d: change(d, 'images', 1, width='wide'), 'images.width', 'error', [2], 3, 6),
    (lambda d: change(d, 'images', 1, height=0), 'images.height', 'error', [2], 3, 6),
    (lambda d: change(d, 'images', 1, id=1), 'images.id_twice', 'error', [1], 2, 4),
    (lambda d: d['images'].append(d['images'][0]) or d, 'images.repeated', 'error', [1], 4, 8),
    (
        lambda d: change(d, 'images', 1, file_name='1.png'),
        'images.file_twice',
        'warning',
        [2],
        3,
        8,
    ),
    (lambda d: change(d, 'categories', 1, name='cat'), 'categories.name_twice', 'error', [2], 4, 8),
    (lambda d: change(d, 'categories', 1, name=''), 'categories.name', 'error', [2], 4, 4),
    (lambda d: without(d, 'annotations', 0, 'id'), 'annotations.id', 'error', [0], 4, 8),
    (lambda d: change(d, 'annotations', 0, id=12), 'annotations.id_twice', 'error', [12], 4, 8),
    (
        lambda d: change(d, 'annotations', 0, image_id=99),
        'annotations.image_id_unknown',
        'error',
        [11],
        4,
        7,
    ),
    (
        lambda d: change(d, 'annotations', 0, category_id=99),
        'annotations.category_id_unknown',
        'error',
        [11],
        4,
        7,
    ),
    (
        lambda d: change(d, 'annotations', 0, image_id={}),
        'annotations.image_id',
        'error',
        [11],
        4,
        7,
    ),
    (lambda d: change(d, 'annotations', 0, bbox=[1, 2, 3]), 'boxes.format', 'warning', [11], 4, 7),
    (
        lambda d: change(d, 'annotations', 0, bbox=[float('nan'), 2, 3, 4]),
        'boxes.not_finite',
        'warning',
        [11],
        4,
        7,
    ),
    (
        lambda d: change(d, 'annotations', 0, bbox=[1, 2, 0, 4]),
        'boxes.no_area',
        'warning',
        [11],
        4,
        7,
    ),
    (
        lambda d: change(d, 'annotations', 0, bbox=[1, 2, 0.5, 4]),
        'boxes.thin',
        'warning',
        [11],
        4,
        7,
    ),
    (
        lambda d: change(d, 'annotations', 0, bbox=[WIDTH + 1, 2, 4, 4]),
        'boxes.outside',
        'warning',
        [11],
        4,
        7,
    ),
    (
        lambda d: change(d, 'annotations', 0, bbox=[-9, 2, 5000, 9]),
        'boxes.huge',
        'warning',
        [11],
        4,
        8,
    ),
    (
        lambda d: change(d, 'annotations', 0, bbox=[60, 2, 20, 9]),
        'boxes.overhanging',
        'note',
        [11],
        4,
        8,
    ),
    (lambda d: change(d, 'annotations', 0, area=-1), 'boxes.area', 'warning', [11], 4, 8),
    (
        lambda d: d['annotations'].append({**d['annotations'][0], 'id': 99}) or d,
        'boxes.repeated',
        'warning',
        [99],
        4,
        8,
    ),
    (lambda d: without(d, 'annotations', 0, 'area'), 'annotations.area', 'warning', [11], 4, 8),
    (lambda d: change(d, 'annotations', 0, area=None), 'annotations.area', 'warning', [11], 4, 8),
    (
        lambda d: change(d, 'annotations', 0, area=float('nan')),
        'annotations.area',
        'warning',
        [11],
        4,
        8,
    ),
    (
        lambda d: change(d, 'annotations', 0, iscrowd=None),
        'annotations.iscrowd',
        'warning',
        [11],
        4,
        8,
    ),
    (
        lambda d: without(d, 'annotations', 0, 'iscrowd'),
        'annotations.iscrowd',
        'warning',
        [11],
        4,
        8,
    ),
]


class TestFaults:
    @pytest.mark.parametrize(
        ('spoil', 'code', 'level', 'ids', 'left_images', 'left_boxes'),
        FAULTS,
        ids=[f'{fault[1]}-{i}' for i, fault in enumerate(FAULTS)],
    )
    def test_each_is_found_and_repaired(
        self, tmp_path, spoil, code, level, ids, left_images, left_boxes
    ):
        report = check(tmp_path, spoil(sound()))
        found = codes(report)[code]
        assert (found.level, found.ids) == (level, ids)
        assert found.fix
        repaired = assert_repaired(tmp_path, report)
        assert len(repaired['images']) == left_images
        assert len(repaired['annotations']) == left_boxes
        assert repaired['info'] == dict(year=2020)

    def test_all_faults_at_once(self, tmp_path):
        dataset = sound()
        for spoil, *_ in FAULTS:
            dataset = spoil(dataset)
        report = check(tmp_path, dataset)
        assert len(report.errors) >= 5
        assert_repaired(tmp_path, report)

    def test_a_cut_box_stays_within_its_image_and_keeps_its_smaller_area(self, tmp_path):
        dataset = change(sound(), 'annotations', 0, bbox=[-9, 2, 5000, 9], area=30)
        dataset = change(dataset, 'annotations', 1, bbox=[60, 40, 20, 20], area=400)
        repaired = check(tmp_path, dataset).repaired['annotations']
        assert (repaired[0]['bbox'], repaired[0]['area']) == ([0, 2, WIDTH, 9], 30)
        assert (repaired[1]['bbox'], repaired[1]['area']) == ([60, 40, 4, 8], 32)

    def test_boxes_of_joined_images_and_classes_follow(self, tmp_path):
        dataset = change(sound(), 'images', 1, file_name='1.png')
        dataset = change(dataset, 'categories', 1, name='cat')
        repaired = check(tmp_path, dataset).repaired['annotations']
        assert {entry['image_id'] for entry in repaired} == {1, 3, 4}
        assert {entry['category_id'] for entry in repaired} == {1}

    @pytest.mark.parametrize('number', [0, 0.0, 2**53, -(2**70), '11'])
    def test_ids_that_pycocotools_misjudges_are_told_and_replaced(self, tmp_path, number):
        report = check(tmp_path, change(sound(), 'annotations', 0, id=number))
        found = codes(report)['annotations.id_pycocotools']
        assert (found.level, found.ids) == ('warning', [number])
        ids = [each['id'] for each in assert_repaired(tmp_path, report)['annotations']]
        assert ids == [43, 12, 21, 22, 31, 32, 41, 42]

    def test_ids_that_cannot_be_sorted_are_told(self, tmp_path):
        dataset = change(sound(), 'images', 0, id='x')
        for entry in dataset['annotations'][:2]:
            entry['image_id'] = 'x'
        assert codes(check(tmp_path, dataset))['images.id_pycocotools'].ids == ['x']

    def test_of_a_file_that_loses_all_there_is_no_repaired_one(self, tmp_path):
        dataset = sound()
        for entry in dataset['annotations']:
            entry['bbox'] = [1, 2, 0, 0]
        with pytest.raises(DataError, match=r'none of its 8 annotations would be left: .*width'):
            check(tmp_path, dataset).result()
        for image in dataset['images']:
            image['width'] = -1
        with pytest.raises(DataError, match='none of its 4 images would be left'):
            check(tmp_path, dataset).result()
        dataset = {**sound(), 'annotations': []}
        assert len(check(tmp_path, dataset).result()['images']) == 4

    def test_new_ids_are_free(self, tmp_path):
        dataset = change(sound(), 'annotations', 0, id=42)  # 42 is that of the last
        ids = [entry['id'] for entry in check(tmp_path, dataset).repaired['annotations']]
        assert len(set(ids)) == len(ids) == 8
        assert ids[:-1] == [42, 12, 21, 22, 31, 32, 41]

    def test_one_place_and_two_classes(self, tmp_path):
        dataset = change(sound(), 'annotations', 1, bbox=[6, 7, 21, 16])
        found = codes(check(tmp_path, dataset))['boxes.two_classes']
        assert (found.level, found.ids, found.fix) == ('warning', [12], '')

    def test_the_parsed_file_is_not_changed(self, tmp_path):
        dataset = sound()
        for spoil, *_ in FAULTS:
            dataset = spoil(dataset)
        before = copy.deepcopy(dataset)
        draft = checking.start(dataset, 'x')
        checking.run(draft, AnnotationSource('', 'x'))
        assert repr(dataset) == repr(before)

    def test_empty_images_classes_and_sets(self, tmp_path):
        dataset = sound()
        dataset['annotations'] = [each for each in dataset['annotations'] if each['image_id'] < 3]
        dataset['categories'].append(dict(id=3, name='owl'))
        found = codes(check(tmp_path, dataset))
        assert found['images.empty'].ids == [3, 4]
        assert "['owl']" in found['classes.empty'].text
        dataset['annotations'] = []
        assert codes(check(tmp_path, dataset))['boxes.none'].level == 'error'
        dataset['images'] = []
        assert codes(check(tmp_path, dataset))['images.none'].level == 'error'


# Values that tools, people and attackers write in the place of others.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 130),
    st.sampled_from([10**400, -1, 0, 1e308, float('inf'), float('nan'), '', '1', 'cat', 'x.png']),
    st.lists(st.one_of(st.integers(-9, 200), st.none(), st.floats()), max_size=5),
    st.dictionaries(st.sampled_from(['id', 'x']), st.integers(0, 9), max_size=1),
)
PLACES = st.tuples(
    st.sampled_from(['images', 'annotations', 'categories']),
    st.integers(0, 7),
    st.sampled_from(
        [
            'id',
            'file_name',
            'width',
            'height',
            'name',
            'image_id',
            'category_id',
            'bbox',
            'area',
            'iscrowd',
            'ignore',
            None,
        ]
    ),
    ODD,
)


class TestHostileFiles:
    @given(st.lists(PLACES, max_size=8), st.booleans())
    @settings(max_examples=150, deadline=None, database=None)
    def test_whatever_a_file_holds_it_is_repaired_or_refused(self, changes, with_classes):
        dataset = sound()
        for key, index, field, value in changes:
            entries = dataset[key]
            index %= len(entries)
            if field is None:
                entries[index] = value  # in the place of an object
            elif isinstance(entries[index], dict):
                entries[index] = {**entries[index], field: value}
        source = AnnotationSource('', 'x', classes=('cat', 'dog') if with_classes else None)
        draft = checking.start(dataset, 'x')
        checking.run(draft, source)
        repaired = draft.result()
        check_structure(repaired, 'x')
        check_ids(repaired, 'x')
        categories = [each['id'] for each in repaired['categories']]
        _, boxes = usable_boxes(repaired, categories)
        assert boxes.dropped == {}
        again = checking.start(repaired, 'x')
        checking.run(again, source)
        assert [each for each in again.findings if each.fix] == []


class TestFormats:
    def boxes(self, seed: int = 0, number: int = 40) -> np.ndarray:
        low = np.random.default_rng(seed).uniform(0, 0.7, (number, 2))
        side = np.random.default_rng(seed + 1).uniform(0.1, 0.3, (number, 2))
        return np.hstack([low, side]) * [WIDTH, HEIGHT, WIDTH, HEIGHT]

    def write(self, boxes: np.ndarray) -> dict:
        dataset = sound()
        dataset['annotations'] = [
            box(i, 1 + i % 4, row) for i, row in enumerate(boxes.round(2).tolist())
        ]
        return dataset

    def test_corners_are_told_from_sides(self, tmp_path):
        boxes = self.boxes()
        assert 'boxes.corners' not in codes(check(tmp_path, self.write(boxes)))
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        found = codes(check(tmp_path, self.write(corners)))['boxes.corners']
        assert found.level == 'error'
        assert '[x1, y1, x2, y2]' in found.text

    def test_fractions_are_told_from_pixels(self, tmp_path):
        fractions = self.boxes() / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        assert codes(check(tmp_path, self.write(fractions)))['boxes.fractions'].level == 'error'


class TestClasses:
    def test_spelling_is_repaired(self, tmp_path):
        report = check(tmp_path, sound(), classes=('Cat', 'dog'))
        assert codes(report)['classes.spelling'].level == 'error'
        repaired = assert_repaired(tmp_path, report, classes=('Cat', 'dog'))
        assert [each['name'] for each in repaired['categories']] == ['Cat', 'dog']

    def test_an_unknown_name_shows_the_nearest(self, tmp_path):
        found = codes(check(tmp_path, sound(), classes=('cats', 'dog')))['classes.unknown']
        assert "'cats' (nearest: 'cat')" in found.text
        assert (found.level, found.fix) == ('error', '')

    def test_another_order_is_repaired(self, tmp_path):
        report = check(tmp_path, sound(), classes=('dog', 'cat'))
        assert codes(report)['classes.order'].level == 'error'
        repaired = assert_repaired(tmp_path, report, classes=('dog', 'cat'))
        assert [each['id'] for each in repaired['categories']] == [2, 1]

    def test_a_class_that_the_split_lacks_is_added(self, tmp_path):
        classes = ('cat', 'zebra', 'dog')
        report = check(tmp_path, sound(), classes=classes)
        assert codes(report)['classes.absent'].level == 'warning'  # training takes it as well
        repaired = assert_repaired(tmp_path, report, classes=classes)
        assert [(each['id'], each['name']) for each in repaired['categories']] == [
            (1, 'cat'),
            (3, 'zebra'),
            (2, 'dog'),
        ]
        assert len(repaired['annotations']) == 8

    def test_an_absent_class_beside_another_name_is_an_error(self, tmp_path):
        classes = ('zebra', 'dog')  # "cat" may be what the config calls a zebra
        report = check(tmp_path, sound(), classes=classes)
        assert codes(report)['classes.absent'].level == 'error'

    def test_fewer_classes_are_a_note(self, tmp_path):
        found = codes(check(tmp_path, sound(), classes=('dog',)))
        assert (found['classes.unused'].level, found['classes.unused'].ids) == ('note', [1])


@pytest.fixture
def pictures(tmp_path) -> Path:
    """The images of `sound` on disk."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for i in range(1, 5):
        noise = np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), noise)
    return folder


def decode(folder: Path, dataset: dict, pictures: Path, max_pixels: int = 10**6) -> Report:
    path = folder / 'labels.json'
    path.write_text(json.dumps(dataset))
    source = AnnotationSource('', str(path), folder=str(pictures))
    return check_file(source, Decoding(2, max_pixels, bar=False))


class TestImages:
    def test_sound_ones(self, tmp_path, pictures):
        assert decode(tmp_path, sound(), pictures).findings == []

    def test_missing_and_unlisted_ones(self, tmp_path, pictures):
        (pictures / '2.png').rename(pictures / 'other.png')
        report = check(tmp_path, sound(), folder=str(pictures))
        assert codes(report)['images.missing'].ids == [2]
        assert 'annotations: 1' in codes(report)['images.unlisted'].text
        assert len(report.repaired['images']) == 3
        assert len(report.repaired['annotations']) == 6

    def test_unreadable_empty_and_torn_ones(self, tmp_path, pictures):
        content = (pictures / '1.png').read_bytes()
        (pictures / '1.png').write_bytes(content[: len(content) // 2])
        (pictures / '2.png').write_bytes(b'no image')
        (pictures / '3.png').write_bytes(b'')
        report = decode(tmp_path, sound(), pictures)
        found = sorted(
            each for f in report.findings if f.code == 'images.unreadable' for each in f.ids
        )
        assert found == [1, 2, 3]
        assert [image['id'] for image in report.repaired['images']] == [4]

    def test_a_torn_jpeg_that_opencv_fills_with_grey(self, tmp_path):
        path = tmp_path / 'picture.jpg'
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(path), noise)
        assert image_files.look_at(str(path)).fault is None
        path.write_bytes(path.read_bytes()[:-500])
        assert 'truncated' in image_files.look_at(str(path)).fault

    def test_another_size_than_stated(self, tmp_path, pictures):
        dataset = change(sound(), 'images', 0, width=WIDTH * 2)
        dataset = change(dataset, 'images', 1, height=HEIGHT * 3)
        dataset['annotations'][2]['bbox'] = [5, HEIGHT * 2, 9, 9]
        report = decode(tmp_path, dataset, pictures)
        assert codes(report)['images.size'].ids == [1]
        assert codes(report)['images.size_boxes'].ids == [2]
        sizes = {each['id']: (each['width'], each['height']) for each in report.repaired['images']}
        assert sizes == {1: (WIDTH, HEIGHT), 3: (WIDTH, HEIGHT), 4: (WIDTH, HEIGHT)}

    @pytest.mark.parametrize('size', [{}, dict(width=-1, height=-1), dict(width=None, height='?')])
    def test_sizes_that_are_missing_are_read_from_the_pictures(self, tmp_path, pictures, size):
        dataset = sound()
        for image in dataset['images'][:3]:
            del image['width'], image['height']
            image.update(size)
        report = decode(tmp_path, dataset, pictures)
        assert codes(report)['images.no_size'].ids == [1, 2, 3]
        assert report.result()['images'] == sound()['images']
        assert len(report.result()['annotations']) == 8
        assert 'DIR --decode' in codes(check(tmp_path, dataset))['images.height'].fix

    def test_turned_by_exif(self, tmp_path, pictures):
        dataset = sound()
        exif = Image.Exif()
        exif[pixels.EXIF_ORIENTATION] = 6  # a quarter turn
        for i, (width, height) in ((0, (WIDTH, HEIGHT)), (1, (HEIGHT, WIDTH))):
            name = f'{i + 1}.jpg'
            Image.new('RGB', (width, height)).save(pictures / name, exif=exif)
            dataset = change(dataset, 'images', i, file_name=name)
        found = codes(decode(tmp_path, dataset, pictures))
        assert (found['images.turned'].level, found['images.turned'].ids) == ('error', [1])
        assert (found['images.exif'].level, found['images.exif'].ids) == ('note', [2])

    def test_too_many_pixels_are_refused_by_the_header(self, tmp_path, pictures, monkeypatch):
        monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
        assert 'more than 10 pixels' in image_files.look_at(str(pictures / '1.png'), 10).fault

    def test_a_bar_and_its_end(self, capsys):
        assert list(image_files._with_bar(iter([1, 2]), 2)) == [1, 2]
        assert '2/2 images decoded' in capsys.readouterr().err


BOMB = """
import sys, io
import numpy as np
import gfl_det
from gfl_det.utils import pixels
from PIL import Image
side = 14_000
out = io.BytesIO()
Image.new('1', (side, side)).save(out, 'png')
content = out.getvalue()
assert len(content) < 100_000
assert pixels.header_of(content).pixels == side * side > pixels.pixel_limit()
import cv2, resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
except cv2.error:
    picture = None
assert picture is None
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, 'MiB')
"""


class TestPixelLimit:
    def test_opencv_refuses_images_of_half_a_gigabyte(self):
        environment = {k: v for k, v in os.environ.items() if k != pixels.LIMIT_VARIABLE}
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', BOMB],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**environment, 'PYTHONPATH': str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[0]) < 100

    def test_the_data_set_names_the_limit(self, tmp_path, pictures, monkeypatch):
        (tmp_path / 'labels.json').write_text(json.dumps(sound()))
        dataset = CocoDataset(
            ann_file=str(tmp_path / 'labels.json'),
            data_prefix=dict(img=str(pictures)),
            metainfo=dict(classes=('cat', 'dog')),
            pipeline=[],
        )
        monkeypatch.setenv(pixels.LIMIT_VARIABLE, '100')
        assert '3,072 pixels, more than the limit of 100' in dataset._image_fault(
            str(pictures / '1.png')
        )

    @pytest.mark.parametrize('value', ['', 'many', '-5'])
    def test_an_unusable_limit_is_ours(self, monkeypatch, value):
        monkeypatch.setenv(pixels.LIMIT_VARIABLE, value)
        assert pixels.pixel_limit() == pixels.MAX_PIXELS


def config(**changes) -> Config:
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    cfg.merge_from_dict(changes)
    return cfg


class TestPriors:
    def test_the_assigner_itself_is_the_witness(self, tmp_path):
        """Image by image, with a list of priors in place of a lattice."""
        cfg = config()
        generator = np.random.default_rng(0)
        sizes = [(256, 192), (192, 256), (128, 96)]
        dataset = sound()
        dataset['images'] = [
            dict(id=i, file_name=f'{i}.png', width=sizes[i % 3][0], height=sizes[i % 3][1])
            for i in range(9)
        ]
        low, side = generator.uniform(0, 0.7, (60, 2)), generator.uniform(0.01, 0.3, (60, 2))
        image = generator.integers(0, 9, 60)  # in no order
        boxes = np.hstack([low, side]) * np.tile(np.array(sizes)[image % 3], 2)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1.5)
        dataset['annotations'] = [box(i, int(image[i]), boxes[i].tolist()) for i in range(60)]
        pipeline = cfg.train_dataloader.dataset.pipeline
        report = check(tmp_path, dataset, further=against(cfg, pipeline))

        anchors = TASK_UTILS.build({**cfg.model.bbox_head.anchor_generator})
        bare = []
        for each in range(9):
            rows = np.flatnonzero(image == each)
            wh = np.array(sizes[each % 3])
            after = np.floor(wh * min(256 / wh.max(), 192 / wh.min()) + 0.5)
            padded = np.ceil(after / 32).astype(int) * 32
            grid = anchors.grid_priors(
                [(padded[1] // s, padded[0] // s) for s in (8, 16, 32)], device='cpu'
            )
            gts = torch.from_numpy(boxes[rows] * np.tile(after / wh, 2)).float()
            gts[:, 2:] += gts[:, :2]
            result = ATSSAssigner(topk=9).assign(
                InstanceData(priors=torch.cat(grid)),
                [len(level) for level in grid],
                InstanceData(bboxes=gts, labels=torch.zeros(len(rows), dtype=torch.long)),
            )
            trained = set(result.gt_inds.tolist())
            bare += [int(row) for place, row in enumerate(rows) if place + 1 not in trained]
        assert bare
        assert sorted(codes(report)['priors.none'].ids) == sorted(bare)

    def test_small_boxes_and_short_regression_range_are_reported(self, tmp_path):
        dataset = sound()
        for i in range(4):
            dataset = change(dataset, 'annotations', i, bbox=[10 + i, 10, 1.5, 1.5])
        cfg = config(**{'model.bbox_head.reg_max': 1})
        report = check(
            tmp_path, dataset, further=against(cfg, [dict(type='Resize', scale=(64, 48))])
        )
        found = codes(report)
        assert found['priors.none'].level == 'warning'
        assert set(found['priors.none'].ids) <= {11, 12, 21, 22}
        assert found['priors.reach'].level == 'warning'
        assert 'beyond reg_max=1' in found['priors.reach'].text

    @pytest.mark.parametrize(
        'changes',
        [
            {'model.train_cfg.assigner.type': 'MaxIoUAssigner'},
            {'model.bbox_head.anchor_generator.ratios': [0.5, 1.0]},
        ],
    )
    def test_another_head_or_assigner_is_left_unchecked(self, tmp_path, changes):
        report = check(
            tmp_path,
            sound(),
            further=against(config(**changes), [dict(type='Resize', scale=(9, 9))]),
        )
        assert codes(report)['priors.unchecked'].level == 'note'
        assert (
            codes(check(tmp_path, sound(), further=against(config())))['priors.unchecked'].level
            == 'note'
        )

    def test_of_many_images_the_same_are_drawn(self, monkeypatch):
        monkeypatch.setattr(advice, 'SAMPLE', 10)
        assert advice._sample(10).tolist() == list(range(10))
        drawn = advice._sample(1000)
        assert len(set(drawn.tolist())) == 10
        assert drawn.tolist() == sorted(advice._sample(1000).tolist())


class TestCommand:
    def test_the_tool_finds_repairs_and_ends_with_its_status(self, tmp_path, pictures):
        dataset = change(sound(), 'annotations', 0, image_id=99)
        (tmp_path / 'labels.json').write_text(json.dumps(dataset))
        done = run_tool(
            'check_dataset',
            'labels.json',
            '--images',
            pictures,
            '--decode',
            '--fix',
            'fixed.json',
            '--json',
            'found.json',
            cwd=tmp_path,
        )
        assert done.returncode == 1, done.stderr
        assert 'annotations.image_id_unknown' in done.stdout
        assert 'repaired file: fixed.json' in done.stdout
        assert '1 (id 11) -> removed' in done.stdout
        (entry,) = json.loads((tmp_path / 'found.json').read_text())
        assert entry['findings'][0]['ids'] == [11]
        assert entry['classes'][1] == dict(name='dog', boxes=4, images=4)
        args = check_dataset.parse_arguments(
            [str(tmp_path / 'fixed.json'), '--images', str(pictures)]
        )
        assert check_dataset.run(args) == 0

    def test_json_alone_on_standard_output(self, tmp_path, capsys):
        path = tmp_path / 'labels.json'
        path.write_text(json.dumps(change(sound(), 'annotations', 0, bbox=[1, 2, 0, 4])))
        assert check_dataset.run(check_dataset.parse_arguments([str(path), '--json', '-'])) == 0
        assert json.loads(capsys.readouterr().out)[0]['findings'][0]['code'] == 'boxes.no_area'
        assert (
            check_dataset.run(check_dataset.parse_arguments([str(path), '--json', '-', '--strict']))
            == 1
        )

    def test_the_files_of_a_config_each_once(self, tmp_path):
        args = check_dataset.parse_arguments(
            ['gfl_r18_fpn_digits', '--cfg-options', f'data_root={tmp_path}']
        )
        sources = list(check_dataset.sources_of(args))
        assert [source.name for source in sources] == ['train', 'val']
        assert sources[0].path == str(tmp_path / 'annotations' / 'train.json')
        assert sources[0].folder == f'{tmp_path}/train/'
        args.fix = 'out.json'
        with pytest.raises(ConfigError, match=r'train, val .*--split'):
            check_dataset.run(args)

    @pytest.mark.parametrize('content', [None, '[1', '[1]'])
    def test_unreadable_files_have_no_table(self, tmp_path, capsys, content):
        path = tmp_path / 'labels.json'
        if content is not None:
            path.write_text(content)
        assert check_dataset.run(check_dataset.parse_arguments([str(path)])) == 1
        said = capsys.readouterr()
        assert said.out == ''
        assert len(said.err.splitlines()) == 1
        assert said.err.startswith('error: ')
        assert str(path) in said.err

    def test_arguments_and_outputs_are_judged_before_the_work(self, tmp_path, capsys):
        for option in ('--max-pixels', '--workers'):
            with pytest.raises(SystemExit):
                check_dataset.parse_arguments(['labels.json', option, '-5'])
            assert "at least 1 is needed, not '-5'" in capsys.readouterr().err
        path = tmp_path / 'labels.json'
        path.write_text(json.dumps(sound()))
        for option in ('--json', '--fix'):
            args = check_dataset.parse_arguments([str(path), option, str(path / 'out.json')])
            with pytest.raises(DataError, match=r'out\.json cannot be written'):
                check_dataset.run(args)
        assert capsys.readouterr().out == ''

    def test_inputs_are_not_overwritten(self, tmp_path):
        path = tmp_path / 'labels.json'
        path.write_text(json.dumps(sound()))
        with pytest.raises(DataError, match=r'labels\.json is an input of this command'):
            check_dataset.run(check_dataset.parse_arguments([str(path), '--fix', str(path)]))
        path.write_text('{')
        with pytest.raises(ConfigError, match='cannot be repaired'):
            check_dataset.run(
                check_dataset.parse_arguments([str(path), '--fix', str(tmp_path / 'out')])
            )


class TestBeforeTraining:
    @pytest.fixture
    def cfg(self, tmp_path, pictures) -> Config:
        for split in ('train', 'val'):
            (tmp_path / 'annotations').mkdir(exist_ok=True)
            (tmp_path / split).symlink_to(pictures)
            (tmp_path / 'annotations' / f'{split}.json').write_text(json.dumps(sound()))
        cfg = config()
        gfl_det.utils.config.override(cfg, dict(data_root=f'{tmp_path}/'))
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.metainfo.classes = ('cat', 'dog')
        cfg.model.bbox_head.num_classes = 2
        cfg.work_dir = str(tmp_path / 'work')
        return cfg

    def build(self, cfg: Config) -> CocoDataset:
        with DefaultScope.overwrite_default_scope('mmdet'):
            return gfl_det.registry.DATASETS.build(cfg.train_dataloader.dataset)

    def test_errors_are_one_message(self, tmp_path, cfg):
        path = tmp_path / 'annotations' / 'train.json'
        dataset = change(change(sound(), 'annotations', 0, image_id=99), 'images', 1, width=0)
        path.write_text(json.dumps(dataset))
        with pytest.raises(DataError) as caught:
            preflight.check_training(cfg)
        message = str(caught.value)
        assert f'{path} cannot be trained on' in message
        assert 'width: 1 (id 2)' in message
        assert 'image_id is not among the images: 1 (id 11)' in message
        assert f'gfl-det check {path} --fix OUT.json' in message

    def test_boxes_that_are_only_dropped_do_not(self, tmp_path, cfg):
        path = tmp_path / 'annotations' / 'train.json'
        path.write_text(json.dumps(change(sound(), 'annotations', 0, bbox=[1, 2, 0, 4])))
        preflight.check_training(cfg)

    def test_files_are_parsed_once(self, tmp_path, cfg, monkeypatch):
        preflight.check_training(cfg)
        path = str(tmp_path / 'annotations' / 'train.json')
        with monkeypatch.context() as patch:
            patch.setattr('gfl_det.datasets.coco.parse', lambda *_: pytest.fail('parsed again'))
            assert len(self.build(cfg)) == 4
        assert coco.take(path) is None  # it was handed over
        assert len(self.build(cfg)) == 4

    def test_a_file_that_has_changed_is_parsed_anew(self, tmp_path):
        path = tmp_path / 'labels.json'
        path.write_text('{}')
        coco.keep(str(path), {})
        path.write_text('{"images": []}')
        assert coco.take(str(path)) is None
        assert coco.take('s3://bucket/labels.json') is None

    def test_other_data_sets_are_left_alone(self, tmp_path, cfg):
        (tmp_path / 'annotations' / 'train.json').write_text('no json')
        cfg.train_dataloader.dataset.type = 'mmdet.CocoDataset'
        preflight.check_training(cfg)
