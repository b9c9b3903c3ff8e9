"""Annotation files as tools write them: each is read for what it means, by every reader alike."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as masks

from gfl_det.calibration import gts_from_coco
from gfl_det.datasets import CocoDataset
from gfl_det.datasets.checks.check import AnnotationSource, check_file
from gfl_det.datasets.table import read_table
from gfl_det.datasets.tidying import (
    find_file,
    from_text,
    outline_box,
    path_tails,
    renamed_files,
    tidy,
)
from gfl_det.errors import DataError
from tests.helpers.annotation_files import sound


def changed(key: str, index: int | None = None, drop: tuple[str, ...] = (), **fields) -> dict:
    """A sound file with one entry changed, or every entry of a list."""
    dataset = copy.deepcopy(sound())
    entries = dataset[key]
    for place in range(len(entries)) if index is None else [index]:
        entries[place].update(fields)
        for field in drop:
            del entries[place][field]
    return dataset


def as_texts(key: str, *fields: str) -> dict:
    dataset = copy.deepcopy(sound())
    for entry in dataset[key]:
        for field in fields:
            value = entry[field]
            entry[field] = list(map(str, value)) if isinstance(value, list) else f' {value}'
    return dataset


def outlined() -> dict:
    """The boxes are absent, null, empty and three numbers; all have outlines."""
    dataset = copy.deepcopy(sound())
    for entry, odd in zip(dataset['annotations'], ('absent', None, [], [1, 2, 3])):
        x, y, w, h = entry['bbox']
        entry['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        entry['bbox'] = odd
    del dataset['annotations'][0]['bbox']
    return dataset


FILES = {
    'references as texts': as_texts('annotations', 'image_id', 'category_id'),
    'ids as texts': as_texts('images', 'id'),
    'boxes as texts': as_texts('annotations', 'bbox'),
    'a box as one text': changed('annotations', 0, bbox='[6, 7, 21, 16]'),
    'areas as texts': as_texts('annotations', 'area'),
    'sizes as texts': as_texts('images', 'width', 'height'),
    'crowd marks as texts': as_texts('annotations', 'iscrowd'),
    'crowd marks of null': changed('annotations', iscrowd=None),
    'crowd marks of another kind': changed('annotations', iscrowd='no'),
    'no crowd marks in some': changed('annotations', 1, drop=('iscrowd',)),
    'areas of null': changed('annotations', area=None),
    'no area in some': changed('annotations', 2, drop=('area',)),
    'no boxes, but outlines': outlined(),
}


def write(folder: Path, dataset: dict, encoding: str = 'utf-8') -> str:
    path = folder / 'labels.json'
    path.write_bytes(json.dumps(dataset).encode(encoding))
    return str(path)


def loaded(path: str, folder: str = '') -> list:
    """Boxes, labels and marks of each image, as our data set gives them."""
    dataset = CocoDataset(
        ann_file=path,
        data_prefix=dict(img=folder),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[],
    )
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [[{**each, 'mask': None} for each in info['instances']] for info in infos]


class TestReaders:
    @pytest.mark.parametrize('name', FILES)
    def test_all_readers_agree(self, tmp_path, name):
        right = write(tmp_path, sound())
        expected, boxes = loaded(right), read_table(Path(right).read_bytes(), right)
        path = write(tmp_path, FILES[name])
        assert loaded(path) == expected
        table = read_table(Path(path).read_bytes(), path)
        for field in ('image', 'label', 'boxes', 'area', 'crowd', 'image_wh'):
            np.testing.assert_array_equal(getattr(table, field), getattr(boxes, field))
        gts = gts_from_coco(FILES[name])
        np.testing.assert_array_equal(gts.boxes, gts_from_coco(sound()).boxes)
        report = check_file(AnnotationSource('', path, classes=('cat', 'dog')))
        assert report.errors == []
        assert loaded(write(tmp_path, report.result())) == expected

    @pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
    def test_of_any_encoding(self, tmp_path, encoding):
        expected = loaded(write(tmp_path, sound()))
        path = write(tmp_path, sound(), encoding)
        assert loaded(path) == expected
        assert len(read_table(Path(path).read_bytes(), path).boxes) == 4
        assert check_file(AnnotationSource('', path)).errors == []

    @pytest.mark.parametrize('name', FILES)
    def test_the_parsed_file_is_not_changed(self, name):
        before = copy.deepcopy(FILES[name])
        tidy(FILES[name], 'x')
        assert FILES[name] == before

    def test_a_sound_file_is_handed_on(self):
        dataset = sound()
        tidied, changes = tidy(dataset, 'x')
        assert changes == []
        assert all(tidied[key] is dataset[key] for key in ('images', 'annotations'))


class TestReferences:
    def test_of_an_id_that_two_entries_show_are_left_alone(self):
        dataset = sound()
        dataset['images'][0]['id'], dataset['images'][1]['id'] = '7', 7.0
        for entry in dataset['annotations']:
            entry['image_id'] = '7.0'
        assert tidy(dataset, 'x')[1] == []

    def test_an_id_of_the_same_kind_comes_first(self):
        dataset = sound()
        dataset['images'][0]['id'] = '2'
        for entry, image in zip(dataset['annotations'], ('2', '2', 2, 2)):
            entry['image_id'] = image
        tidied, changes = tidy(dataset, 'x')
        assert changes == []
        assert [each['image_id'] for each in tidied['annotations']] == ['2', '2', 2, 2]

    def test_an_unknown_one_stays(self):
        dataset = changed('annotations', 0, image_id='9')
        assert tidy(dataset, 'x')[0]['annotations'][0]['image_id'] == '9'


@pytest.mark.parametrize(
    ('text', 'number'),
    [('7', 7), (' -7 ', -7), ('7.5', 7.5), ('1e2', 100.0), ('.5', 0.5)]
    + [(each, each) for each in ('', 'nan', 'inf', '1_0', '0x7', '1,5', '7 8', '9' * 50, None)],
)
def test_numbers_of_texts(text, number):
    assert from_text(text) == number


class TestOutlines:
    def test_of_several_polygons(self):
        assert outline_box([[10, 20, 30, 20, 30, 40], [5, 25, 6, 50, 7, 25]]) == [5, 20, 25, 30]

    @pytest.mark.parametrize('compressed', [False, True])
    @pytest.mark.parametrize('seed', range(8))
    def test_of_masks_are_pycocotools(self, compressed, seed):
        generator = np.random.default_rng(seed)
        mask = np.zeros((17, 23), np.uint8, order='F')
        top, left = generator.integers(0, 12, 2)
        mask[top : top + 5, left : left + 9] = generator.integers(0, 2, mask[:5, :9].shape)[
            : 17 - top, : 23 - left
        ]
        mask[top + 1, left + 1] = 1
        encoded = masks.encode(mask)
        expected = masks.toBbox(encoded).tolist()
        runs: list[int] = []
        flat = mask.ravel(order='F').tolist()
        value, length = 0, 0
        for each in flat:
            if each != value:
                runs.append(length)
                value, length = each, 0
            length += 1
        runs.append(length)
        counts = encoded['counts'].decode() if compressed else runs
        assert outline_box(dict(size=[17, 23], counts=counts)) == expected

    @pytest.mark.parametrize(
        'value',
        [None, [], [[]], [[1, 2]], [[1, 2, 3]], [['a', 2, 3, 4]], [[1, 1, 1, 1]], {}, 'x', 5]
        + [dict(size=[2, 2], counts=each) for each in ([1, 1], [4], 'zz', [1.5, 2.5], None)],
    )
    def test_that_are_none(self, value):
        assert outline_box(value) is None


class TestOtherFormats:
    @pytest.mark.parametrize(
        ('dataset', 'words'),
        [
            ({**sound(), 'annotations': [dict(image_id=1, segments_info=[])]}, 'panoptic JSON'),
            (dict(shapes=[], imagePath='a.png', imageData=None), 'a LabelMe file'),
            (dict(_via_img_metadata={}), 'VGG Image Annotator'),
            ({'a.png99': dict(filename='a.png', size=99, regions=[])}, 'VGG Image Annotator'),
            (dict(size={}, objects=[]), 'a Supervisely file'),
            (dict(version='2.0', item={}, annotations=[]), 'a Darwin file'),
            (dict(info={}, categories={}, items=[]), 'a Datumaro file'),
            ([dict(id=1, data={}, annotations=[])], 'Label Studio'),
            ([dict(image='a.png', annotations=[])], 'CreateML'),
            ([dict(image_id=1, category_id=1, bbox=[], score=0.5)], 'holds results of a detector'),
        ],
    )
    def test_are_named(self, tmp_path, dataset, words):
        path = write(tmp_path, dataset)
        with pytest.raises(DataError, match=words):
            loaded(path)
        with pytest.raises(DataError, match=words):
            gts_from_coco(dataset)
        (finding,) = check_file(AnnotationSource('', path)).findings
        assert words in finding.text

    def test_rotated_boxes_are_counted(self, tmp_path):
        dataset = sound()
        for entry, turn in zip(dataset['annotations'], (90.0, '45', 0, 180)):
            entry['attributes'] = dict(occluded=False, rotation=turn)
        report = check_file(AnnotationSource('', write(tmp_path, dataset)))
        (finding,) = report.findings
        assert (finding.level, finding.code, len(finding.ids)) == ('warning', 'boxes.rotated', 2)

    def test_lvis_is_told_and_read(self, tmp_path):
        dataset = sound()
        for image in dataset['images']:
            image['coco_url'] = f'http://images.example.org/val/{image.pop("file_name")}'
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
        report = check_file(AnnotationSource('', write(tmp_path, dataset)))
        assert {each.code for each in report.findings} == {'images.address', 'images.lvis'}
        assert [each['file_name'] for each in report.result()['images']] == ['1.png', '2.png']


NAMES = {
    'backslashes': 'images\\a b.png',
    'upwards': '..\\..\\media\\4\\a b.png',
    'encoded': 'a%20b.png',
    'address': 'https://storage.example.org/val/a%20b.png',
    'bucket': 's3://bucket/val/a b.png',
    'local files': '/data/local-files/?d=val/a%20b.png',
}


class TestFileNames:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        (tmp_path / 'img').mkdir()
        for name in ('a b.png', '2.png'):
            cv2.imwrite(str(tmp_path / 'img' / name), np.full((48, 64, 3), 90, np.uint8))
        return tmp_path / 'img'

    @pytest.mark.parametrize('name', NAMES.values(), ids=NAMES)
    def test_the_file_that_is_meant_is_found_and_told(self, tmp_path, folder, name):
        dataset = changed('images', 0, file_name=name)
        path = write(tmp_path, dataset)
        assert find_file(str(folder), name) == 'a b.png'
        assert len(loaded(path, str(folder))[0]) == 2
        report = check_file(AnnotationSource('', path, str(folder)))
        assert {each.code for each in report.findings} == {'images.renamed'}
        assert report.result()['images'][0]['file_name'] == 'a b.png'

    def test_a_file_of_that_very_name_comes_first(self, folder):
        cv2.imwrite(str(folder / 'a%20b.png'), np.full((48, 64, 3), 90, np.uint8))
        assert find_file(str(folder), 'a%20b.png') == 'a%20b.png'

    def test_one_file_is_not_given_to_two_images(self, folder):
        assert renamed_files(str(folder), ['x\\2.png', 'y\\2.png', 'z\\a b.png']) == {
            'z\\a b.png': 'a b.png'
        }
        assert renamed_files(str(folder), ['2.png', 'y\\2.png']) == {}

    @pytest.mark.parametrize('name', ['', '/', '..', 'http://[', '%', 'a\0b:', '?d=', '\\'])
    def test_unusual_names_match_nothing(self, folder, name):
        assert find_file(str(folder), name) is None
        assert all(path_tails(name)) or path_tails(name) == []
