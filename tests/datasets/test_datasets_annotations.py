"""COCO files by hand, each with one fault: the message names the file, the entry and the cure."""

from __future__ import annotations

import copy
import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.datasets.annotations import (
    AREA_FIELD,
    BAD_FORMAT,
    DROPPED,
    NO_AREA,
    NOT_FINITE,
    OUTSIDE,
    TOO_THIN,
    add_absent,
    check_ids,
    check_structure,
    free_ids,
    match_classes,
    parse,
    usable_boxes,
)
from gfl_det.errors import DataError

FILE = 'labels.json'
INF, NAN = math.inf, math.nan


def sound() -> dict:
    """Two images of 100 x 80 px, three boxes, two categories."""
    return {
        'images': [
            {'id': 1, 'file_name': 'a.png', 'width': 100, 'height': 80},
            {'id': 2, 'file_name': 'b.png', 'width': 100, 'height': 80},
        ],
        'categories': [{'id': 7, 'name': 'cat'}, {'id': 3, 'name': 'dog'}],
        'annotations': [
            box(11, [10, 10, 20, 20]),
            box(12, [0.0, 0.0, 100, 80], image_id=2, category_id=3),
            box(13, [5, 5, 30, 10.5], iscrowd=1),
        ],
    }


def box(number, bbox, **fields) -> dict:
    entry = {'id': number, 'image_id': 1, 'category_id': 7, 'bbox': bbox, 'area': 50, 'iscrowd': 0}
    return {**entry, **fields}


def check(dataset: dict) -> None:
    check_structure(dataset, FILE)
    check_ids(dataset, FILE)


def refused(dataset: dict) -> str:
    with pytest.raises(DataError) as caught:
        check(dataset)
    message = str(caught.value)
    assert FILE in message
    assert '\n' not in message
    return message


class TestParse:
    def test_a_sound_file(self):
        assert parse(json.dumps(sound()).encode(), FILE) == sound()
        check(sound())

    def test_no_json_names_file_and_position(self):
        with pytest.raises(DataError, match=r'labels\.json .*line 2, column 1'):
            parse(b'{"images": [],\n}', FILE)

    @pytest.mark.parametrize('content', [b'', b' \n'])
    def test_an_empty_file(self, content):
        with pytest.raises(DataError, match=r'labels\.json is empty'):
            parse(content, FILE)

    def test_a_picture_in_its_place(self):
        with pytest.raises(DataError, match=r'labels\.json is not'):
            parse(b'\x89PNG\r\n\x1a\n\xff\xfe\x00', FILE)

    @pytest.mark.parametrize(
        ('content', 'words'),
        [
            (b'<annotation></annotation>', 'is XML'),
            (b'PK\x03\x04', 'is a compressed file'),
            (gzip.compress(b'{}', mtime=0), 'is a compressed file'),
            ('{"name": "caf\u00e9"}'.encode('cp1252'), 'is not UTF-8'),
        ],
    )
    def test_what_is_another_text_is_named(self, content, words):
        with pytest.raises(DataError, match=rf'labels\.json {words}'):
            parse(content, FILE)

    def test_a_torn_file(self):
        content = json.dumps(sound()).encode()
        with pytest.raises(DataError, match='line 1, column'):
            parse(content[: len(content) // 2], FILE)

    def test_the_top_level_is_a_list(self):
        with pytest.raises(DataError, match='holds a JSON list'):
            parse(b'[]', FILE)


class TestStructure:
    @pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
    @pytest.mark.parametrize('value', [None, {}, 'text'])
    def test_each_list_must_be_one(self, key, value):
        dataset = sound()
        dataset[key] = value
        assert f'"{key}"' in refused(dataset)
        del dataset[key]
        assert f'has no list "{key}"' in refused(dataset)

    def test_a_test_set_may_lack_annotations(self):
        dataset = sound()
        del dataset['annotations']
        check_structure(dataset, FILE, need_annotations=False)
        check_ids(dataset, FILE)

    @pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
    def test_entries_must_be_objects(self, key):
        dataset = sound()
        dataset[key][1] = 'text'
        assert f"{key}[1] is 'text'" in refused(dataset)

    @pytest.mark.parametrize(
        ('key', 'field', 'named'),
        [
            ('images', 'file_name', 'entry 2'),
            ('images', 'width', 'entry 2'),
            ('images', 'height', 'entry 2'),
            ('images', 'id', '[1]'),
            ('annotations', 'image_id', 'entry 12'),
            ('annotations', 'category_id', 'entry 12'),
            ('annotations', 'id', '[1]'),
            ('categories', 'name', 'entry 3'),
        ],
    )
    def test_a_missing_field_is_named_with_its_entry(self, key, field, named):
        dataset = sound()
        del dataset[key][1][field]
        assert f'{key} {named} has no "{field}"' in refused(dataset)

    @pytest.mark.parametrize(
        ('key', 'field', 'value'),
        [
            ('images', 'width', 0),
            ('images', 'width', -5),
            ('images', 'height', NAN),
            ('images', 'height', '80'),
            ('images', 'height', INF),
            ('images', 'file_name', ''),
            ('images', 'file_name', 5),
            ('annotations', 'image_id', [1]),
            ('annotations', 'category_id', None),
            ('annotations', 'id', True),
            ('categories', 'name', 5),
        ],
    )
    def test_a_value_of_the_wrong_kind_is_named_with_its_entry(self, key, field, value):
        dataset = sound()
        dataset[key][1][field] = value
        message = refused(dataset)
        assert f'has the {field} {value!r}' in message
        assert field == 'id' or f'entry {dataset[key][1]["id"]}' in message


class TestIds:
    @pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
    def test_an_id_that_occurs_twice(self, key):
        dataset = sound()
        dataset[key][1]['id'] = dataset[key][0]['id']
        message = refused(dataset)
        assert f'{key} have duplicate ids: 1 (id {dataset[key][0]["id"]})' in message

    def test_an_unknown_category(self):
        dataset = sound()
        dataset['annotations'][1]['category_id'] = 99
        message = refused(dataset)
        assert 'annotations 1 (id 12) have the category_id 99' in message
        assert 'known: [3, 7]' in message

    def test_a_text_is_not_the_number_it_shows(self):
        dataset = sound()
        dataset['annotations'][0]['category_id'] = '7'
        assert "category_id '7'" in refused(dataset)

    def test_unknown_images_are_counted_and_three_named(self):
        dataset = sound()
        dataset['annotations'] += [box(20 + i, [1, 1, 5, 5], image_id=50 + i) for i in range(5)]
        message = refused(dataset)
        assert 'annotations 5 (id 20, 21, 22, ...) have the image_id 50, 51, 52' in message


class TestClasses:
    categories = sound()['categories']

    def test_ids_in_the_order_of_the_file(self):
        assert match_classes(('cat', 'dog'), self.categories, FILE) == [7, 3]
        assert match_classes(['dog'], self.categories, FILE) == [3]  # a subset trains on it alone

    @pytest.mark.parametrize('wrong', ['Dog', 'dogs', 'DOG'])
    def test_a_near_miss_lists_both_and_the_nearest(self, wrong):
        with pytest.raises(DataError) as caught:
            match_classes(('cat', wrong), self.categories, FILE)
        message = str(caught.value)
        assert f"no class named {wrong!r} (nearest: 'dog')" in message
        assert f"metainfo lists ['cat', {wrong!r}]" in message
        assert "the file lists ['cat', 'dog']" in message

    def test_a_far_miss_has_no_nearest(self):
        with pytest.raises(DataError, match=r"no class named 'zebra';"):
            match_classes(('zebra',), self.categories, FILE)

    @pytest.mark.parametrize(
        ('classes', 'ids'),
        [
            (('cat', 'zebra', 'dog'), [7, 8, 3]),
            (('ant', 'bee', 'cat', 'dog', 'eel'), [8, 9, 7, 3, 10]),
            (('cat', 'dog'), [7, 3]),
        ],
    )
    def test_absent_classes_are_put_in_their_places(self, classes, ids):
        added, absent = add_absent(self.categories, classes)
        assert absent == [name for name in classes if name not in ('cat', 'dog')]
        assert match_classes(classes, added, FILE) == ids
        assert len(self.categories) == 2

    @pytest.mark.parametrize(
        'classes',
        [
            ('cat', 'zebra'),  # the file's dog may be the zebra
            ('zebra',),
            'cat',
            ('cat', 'dog', 'eel', 'eel'),
        ],
    )
    def test_classes_that_may_be_meant_otherwise_are_not_added(self, classes):
        assert add_absent(self.categories, classes) == (self.categories, [])
        with pytest.raises(DataError):
            match_classes(classes, self.categories, FILE)

    def test_absent_classes_do_not_hide_another_order(self):
        added, _ = add_absent(self.categories, ('dog', 'eel', 'cat'))
        with pytest.raises(DataError, match='another order'):
            match_classes(('dog', 'eel', 'cat'), added, FILE)

    def test_ids_that_are_free(self):
        assert free_ids([3, 'x', 2**70, float('nan')], 2) == [2**70 + 1, 2**70 + 2]
        assert free_ids(['a'], 1) == [1]

    def test_long_lists_are_cut_and_counted(self):
        with pytest.raises(DataError, match=r'\.\.\. 80 in all\]'):
            match_classes([f'c{i}' for i in range(80)], self.categories, FILE)

    def test_another_order_would_swap_the_names(self):
        with pytest.raises(DataError, match=r'order .*labels\.json'):
            match_classes(('dog', 'cat'), self.categories, FILE)

    def test_names_that_occur_twice(self):
        twice = [*self.categories, {'id': 9, 'name': 'cat'}]
        with pytest.raises(DataError, match=r"'cat' occurs twice in \"categories\" of labels"):
            match_classes(('cat', 'dog'), twice, FILE)
        with pytest.raises(DataError, match="'cat' occurs twice in metainfo"):
            match_classes(('cat', 'cat'), self.categories, FILE)

    def test_a_name_in_the_place_of_a_tuple(self):
        with pytest.raises(DataError, match=r"write \('cat',\)"):
            match_classes('cat', self.categories, FILE)


BAD = {
    'none': ([None, None, None, None], BAD_FORMAT),
    'text': (['1', '2', '30', '40'], BAD_FORMAT),
    'three': ([1, 2, 3], BAD_FORMAT),
    'five': ([1, 2, 3, 4, 5], BAD_FORMAT),
    'empty': ([], BAD_FORMAT),
    'object': ({'x': 1}, BAD_FORMAT),
    'absent': (None, BAD_FORMAT),
    'true': ([True, 2, 3, 4], BAD_FORMAT),
    'nested': ([[1], 2, 3, 4], BAD_FORMAT),
    'nan': ([NAN, 2, 3, 4], NOT_FINITE),
    'nan side': ([1, 2, NAN, 4], NOT_FINITE),
    'inf': ([1, 2, INF, 4], NOT_FINITE),
    'minus inf': ([-INF, 2, 3, 4], NOT_FINITE),
    'giant': ([1, 2, 10**400, 4], NOT_FINITE),
    'zero width': ([10, 10, 0, 5], NO_AREA),
    'zero height': ([10, 10, 5, 0.0], NO_AREA),
    'negative': ([10, 10, -5, 5], NO_AREA),
    'both negative': ([50, 50, -5, -5], NO_AREA),
    'right of it': ([100, 10, 5, 5], OUTSIDE),
    'left of it': ([-5, 10, 5, 5], OUTSIDE),
    'below it': ([10, 80, 5, 5], OUTSIDE),
    'above it': ([10, -50, 5, 5], OUTSIDE),
    'thin': ([10, 10, 0.5, 20], TOO_THIN),
    'flat': ([10, 10, 20, 0.99], TOO_THIN),
}


class TestBoxes:
    def test_sound_boxes_all_remain_and_nothing_is_said(self):
        dataset = sound()
        before = copy.deepcopy(dataset)
        kept, report = usable_boxes(dataset, [7, 3])
        assert kept == dataset['annotations']
        assert dataset == before
        assert (report.total, report.kept, report.dropped) == (3, 3, {})
        assert report.warning() is None
        assert report.notes() == []

    @pytest.mark.parametrize(('bbox', 'reason'), BAD.values(), ids=BAD)
    def test_each_bad_box_is_dropped_under_its_reason(self, bbox, reason):
        dataset = sound()
        dataset['annotations'].insert(1, box(99, bbox))
        kept, report = usable_boxes(dataset, [7, 3])
        assert [entry['id'] for entry in kept] == [11, 12, 13]
        assert report.dropped == {reason: (1, [99])}
        assert report.warning() == (
            f'1 of 4 boxes cannot be used and are dropped: {reason}: 1 (id 99)'
        )

    def test_without_a_bbox_field(self):
        dataset = sound()
        del dataset['annotations'][0]['bbox']
        assert usable_boxes(dataset, [7, 3])[1].dropped == {BAD_FORMAT: (1, [11])}

    def test_an_area_field_of_zero_is_mmdets_way_to_drop_a_box(self):
        dataset = sound()
        dataset['annotations'] = [
            box(1, [1, 1, 5, 5], area=0),
            box(2, [1, 1, 5, 5], area=-1.5),
            box(3, [1, 1, 5, 5], area=0.1),
        ]
        kept, report = usable_boxes(dataset, [7])
        assert [entry['id'] for entry in kept] == [3]
        assert report.dropped == {AREA_FIELD: (2, [1, 2])}

    @pytest.mark.parametrize('area', [None, NAN, 'big'])
    def test_an_unusable_area_becomes_the_boxs(self, area):
        dataset = sound()
        dataset['annotations'][0]['area'] = area
        del dataset['annotations'][1]['area']
        kept, report = usable_boxes(dataset, [7, 3])
        assert [entry['area'] for entry in kept] == [400, 8000, 50]
        assert report.area_filled == (2, [11, 12])
        assert dataset['annotations'][0]['area'] is area  # the file's own entry stays as it was
        assert 'w * h: 2 (id 11, 12)' in report.notes()[0]

    def test_boxes_partly_outside_are_kept_and_counted(self):
        dataset = sound()
        dataset['annotations'] = [
            box(1, [-30, 10, 40, 10]),
            box(2, [90, 70, 11.5, 5]),
            box(3, [90, 70, 10.9, 10.9]),  # rounding: less than a pixel
        ]
        kept, report = usable_boxes(dataset, [7])
        assert len(kept) == 3
        assert report.partly_outside == (2, [1, 2])

    def test_classes_not_asked_for_and_ignored_entries_are_counted_apart(self):
        dataset = sound()
        dataset['annotations'].append(box(14, [NAN] * 4, ignore=True))
        dataset['annotations'].append(box(15, [NAN] * 4, category_id=3))
        kept, report = usable_boxes(dataset, [7])
        assert [entry['id'] for entry in kept] == [11, 13]
        assert (report.total, report.other_classes, report.ignored) == (5, 2, 1)
        assert report.dropped == {}

    def test_many_bad_boxes_are_counted_and_three_named(self):
        dataset = sound()
        dataset['annotations'] += [box(100 + i, [5, 5, 0, 0]) for i in range(40)]
        assert usable_boxes(dataset, [7, 3])[1].dropped[NO_AREA] == (40, [100, 101, 102])

    @pytest.mark.parametrize('category_ids', [[], [7, 3]])
    def test_no_boxes_at_all(self, category_ids):
        dataset = {**sound(), 'annotations': []}
        kept, report = usable_boxes(dataset, category_ids)
        assert kept == []
        assert report.warning() is None

    def test_no_images_at_all(self):
        assert usable_boxes({'images': [], 'categories': []}, [])[0] == []


number = st.one_of(
    st.integers(-30, 130),
    st.floats(-30, 130),
    st.sampled_from([NAN, INF, -INF, 0, 0.0, 0.5, 1, 1.0, None, 'x', True, 10**400]),
)
bbox_values = st.one_of(
    st.lists(number, min_size=4, max_size=4),
    st.tuples(st.integers(0, 90), st.integers(0, 70), st.integers(1, 50), st.integers(1, 50)).map(
        list
    ),
    st.lists(number, max_size=5),
    st.none(),
)


def oracle(bbox, area, width, height) -> str | None:
    """The reason to drop one box, in plain steps."""
    numbers = (int, float)
    if not isinstance(bbox, list) or len(bbox) != 4:
        return BAD_FORMAT
    if any(isinstance(v, bool) or not isinstance(v, numbers) for v in bbox):
        return BAD_FORMAT
    if any(v > 1e300 or v < -1e300 or v != v for v in bbox):
        return NOT_FINITE
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return NO_AREA
    if w < 1 or h < 1:
        return TOO_THIN
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return OUTSIDE
    return AREA_FIELD if area <= 0 else None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(bbox_values, st.sampled_from([-1, 0, 0.5, 400])), max_size=8))
def test_any_boxes_are_sorted_as_a_plain_loop_sorts_them(values):
    dataset = sound()
    dataset['annotations'] = [box(i, bbox, area=area) for i, (bbox, area) in enumerate(values)]
    kept, report = usable_boxes(dataset, [7])
    expected = [oracle(bbox, area, 100, 80) for bbox, area in values]
    assert [entry['id'] for entry in kept] == [i for i, why in enumerate(expected) if why is None]
    counts = {reason: expected.count(reason) for reason in DROPPED if reason in expected}
    assert {reason: found.number for reason, found in report.dropped.items()} == counts
    assert np.isfinite([entry['bbox'] for entry in kept]).all()
