"""Reading in columns: plain files give what the tolerant reader gives, others are left to it."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.datasets import CocoDataset, coco, columns
from gfl_det.datasets.checks import check
from gfl_det.datasets.checks.check import AnnotationSource, check_annotations_alone, check_file
from gfl_det.datasets.columns import Columns, parse_columns, read_columns
from gfl_det.datasets.table import read_table, table_of_columns
from gfl_det.engine.preflight.data import plain_fault
from gfl_det.errors import DataError
from tests.helpers.annotation_files import annotation_files, sound

FILES = dict(annotation_files())
CLASSES = ('cat', 'dog')


def load(path, monkeypatch, tolerant, **options):
    """Records of a data set and what it logs, or its refusal; the tolerant reader on request."""
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(coco, 'print_log', lambda text, logger, level: lines.append((level, text)))
        if tolerant:
            patch.setattr(coco, 'read_columns', lambda path: None)
        try:
            dataset = CocoDataset(
                ann_file=str(path),
                data_prefix=dict(img='img'),
                metainfo=dict(classes=CLASSES),
                pipeline=[],
                **{'serialize_data': False, **options},
            )
        except DataError as error:
            return str(error)
    records = [dataset.get_data_info(i) for i in range(len(dataset))]
    of_category = {key: ids for key, ids in dataset.cat_img_map.items() if ids}
    return records, lines, dataset.box_report, of_category, dataset.cat_ids


def same_tables(content):
    columns = parse_columns(content)
    if columns is None:
        return False
    ours, theirs = table_of_columns(columns, 'a'), read_table(content, 'a')
    for name, left, right in zip(ours._fields, ours, theirs):
        if name == 'outlines':
            assert [each or None for each in left] == [each or None for each in right]
        else:
            np.testing.assert_array_equal(left, right, name)
    return True


def same_findings(path, classes=CLASSES):
    source = AnnotationSource('', str(path), None, classes)
    fast, slow = check_file(source, repair=False), check_file(source)
    assert fast.findings == slow.findings
    assert (fast.images, fast.boxes, fast.classes) == (slow.images, slow.boxes, slow.classes)


def test_each_malformed_file_is_read_as_by_the_tolerant_reader(tmp_path, monkeypatch):
    path, plain = tmp_path / 'labels.json', 0
    for name, content in FILES.items():
        path.write_bytes(content)
        assert load(path, monkeypatch, False) == load(path, monkeypatch, True), name
        same_findings(path)
        plain += same_tables(content)
    assert 10 < plain < len(FILES) / 2


NUMBERS = st.sampled_from([-3, 0, 0.4, 1, 5, 7.25, 40, 64, 90, 1e30])
BOX = st.lists(NUMBERS, min_size=4, max_size=4)
ANNOTATION = st.fixed_dictionaries(
    dict(image_id=st.sampled_from([1, 2]), category_id=st.sampled_from([1, 2, 3]), bbox=BOX),
    optional=dict(
        area=st.sampled_from([None, -1, 0, 3.5, 1e9]),
        iscrowd=st.sampled_from([None, 0, 1]),
        ignore=st.sampled_from([0, 1, True, False, None]),
        segmentation=st.sampled_from([[], {}, None, [[1, 2, 9, 2, 9, 9.5]], {'counts': 'a'}]),
        attributes=st.sampled_from([None, {}, {'rotation': 0.0}, {'rotation': 180, 'a': '},{'}]),
        note=st.sampled_from(['}, {', {'a': [{}, {}]}]),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ANNOTATION, max_size=12), st.sampled_from([0, 1, -4, 2**52, 2**53 + 2]))
def test_any_plain_file_is_read_as_by_the_tolerant_reader(tmp_path_factory, annotations, first):
    dataset = sound()
    dataset['categories'].append(dict(id=3, name='cow'))
    annotations = [{'id': first + n, **entry} for n, entry in enumerate(annotations)]
    path = tmp_path_factory.getbasetemp() / 'any.json'
    path.write_text(json.dumps({**dataset, 'annotations': annotations}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, 'SLICE_BYTES', 300)
        patch.setattr(columns, 'SEAM_BYTES', 290)
        options = dict(filter_cfg=dict(filter_empty_gt=True, min_size=8))
        assert load(path, patch, False) == load(path, patch, True)
        assert load(path, patch, False, **options) == load(path, patch, True, **options)
        same_findings(path, None)
        same_findings(path, ('cat', 'dog', 'cow', 'ant'))


def plain_file(tmp_path, boxes=40):
    dataset = sound()
    entry = dataset['annotations'][0]
    note = {'note': [{'a': '},{'}, {'b': 1}]}
    dataset['annotations'] = [{**entry, **note, 'id': n + 1} for n in range(boxes)]
    path = tmp_path / 'labels.json'
    path.write_text(json.dumps(dataset))
    return path, dataset


def test_slices_end_where_entries_end(tmp_path, monkeypatch):
    path, dataset = plain_file(tmp_path)
    whole = read_columns(path)
    for size in range(700, 900, 7):
        monkeypatch.setattr(columns, 'SLICE_BYTES', size)
        for left, right in zip(read_columns(path), whole):
            np.testing.assert_array_equal(left, right)
    assert whole.ids.tolist() == [each['id'] for each in dataset['annotations']]
    monkeypatch.setattr(columns, 'SLICE_BYTES', 100)  # no entry fits
    assert read_columns(path) is None


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (b'"a"', b'"\xff"'),
        (b'{"b": 1}', b'{"b": 01}'),
        (b'{"b": 1}', b'{"b": NaN}'),
        (b'{"b": 1}', b'{"b": "\\x"}'),
        (b'{"b": 1}', b'{"b": "\t"}'),
        (b'{"b": 1}', b'{"b": 1,}'),
    ],
)
def test_fields_that_are_skipped_are_checked_too(tmp_path, old, new):
    content = plain_file(tmp_path)[0].read_bytes()
    assert parse_columns(content) is not None
    assert parse_columns(content.replace(old, new, 1)) is None


def test_subsets_copies_and_workers_see_the_same_records(tmp_path):
    path, _ = plain_file(tmp_path)
    options = dict(data_prefix=dict(img=''), metainfo=dict(classes=CLASSES), pipeline=[])
    dataset = CocoDataset(ann_file=str(path), **options)
    first = dataset.get_data_info(0)
    assert first['instances'][0]['bbox'] == [6, 7, 27, 23]
    assert pickle.loads(pickle.dumps(dataset)).get_data_info(0) == first
    assert dataset.get_subset([1, 0]).get_data_info(1)['img_id'] == first['img_id']
    assert dataset.get_subset(-1).get_data_info(-1)['img_id'] == 2
    with pytest.raises(IndexError):
        dataset.get_data_info(2)


def test_a_subclass_with_records_of_its_own_gets_whole_entries(tmp_path):
    class Own(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return dict(super().parse_data_info(raw_data_info), raw=raw_data_info['raw_ann_info'])

    path, dataset = plain_file(tmp_path)
    options = dict(data_prefix=dict(img=''), metainfo=dict(classes=CLASSES), pipeline=[])
    own = Own(ann_file=str(path), **options)
    assert own.get_data_info(0)['raw'][0] == dataset['annotations'][0]


class TestCache:
    @pytest.fixture(autouse=True)
    def kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(columns, 'MIN_KEPT_BYTES', 0)
        monkeypatch.setenv('GFL_DET_CACHE', str(tmp_path / 'kept'))
        return tmp_path / 'kept'

    def test_a_second_reading_maps_what_the_first_one_wrote(self, tmp_path, monkeypatch, kept):
        path, _ = plain_file(tmp_path)
        first = read_columns(path)
        assert len(list(kept.iterdir())) == 1
        monkeypatch.setattr(columns, 'parse_columns', None)
        for left, right in zip(read_columns(path), first):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        assert isinstance(first.boxes, np.memmap)

    def test_another_content_of_the_same_name_is_read_anew(self, tmp_path):
        path, _ = plain_file(tmp_path)
        state = path.stat()
        read_columns(path)
        path.write_bytes(path.read_bytes().replace(b'[6, 7,', b'[6, 8,'))
        import os

        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert read_columns(path).boxes[0].tolist() == [6, 8, 21, 16]

    @pytest.mark.parametrize('share', [0, 0.05, 0.5, 0.99])
    def test_a_torn_one_is_read_anew(self, tmp_path, kept, share):
        path, _ = plain_file(tmp_path)
        first = read_columns(path).boxes.copy()
        file = next(kept.iterdir())
        whole = file.read_bytes()
        file.unlink()
        file.write_bytes(whole[: int(share * len(whole))])
        np.testing.assert_array_equal(read_columns(path).boxes, first)
        assert file.read_bytes() == whole

    def test_a_folder_that_cannot_be_written_is_done_without(self, tmp_path, monkeypatch):
        path, _ = plain_file(tmp_path)
        (tmp_path / 'file').write_text('')
        monkeypatch.setenv('GFL_DET_CACHE', str(tmp_path / 'file' / 'kept'))
        assert len(read_columns(path).ids) == 40


def test_missing_folders_and_removed_images_keep_the_fast_path(tmp_path, monkeypatch):
    path, dataset = plain_file(tmp_path)
    dataset['annotations'][5]['image_id'] = 2
    dataset['annotations'] += [dict(dataset['annotations'][5], id=0, bbox=[60, 40, 40, 40])]
    path.write_text(json.dumps(dataset))
    (tmp_path / '2.png').write_bytes(b'')
    source = AnnotationSource('', str(path), str(tmp_path))
    slow = check_file(source)
    monkeypatch.setattr(check, 'read', None)
    fast = check_file(source, repair=False)
    assert fast.findings == slow.findings
    assert {'images.missing', 'annotations.id_pycocotools', 'boxes.huge'} & {
        each.code for each in fast.findings
    } >= {'images.missing', 'annotations.id_pycocotools'}


@pytest.mark.parametrize('field', ['area', 'iscrowd', 'id'])
def test_what_mmdets_metric_cannot_judge(tmp_path, monkeypatch, field):
    path, dataset = plain_file(tmp_path)
    assert plain_fault(str(path)) is None
    dataset['annotations'][3] = {**dataset['annotations'][3], field: 0 if field == 'id' else None}
    path.write_text(json.dumps(dataset))
    fault = plain_fault(str(path))
    with monkeypatch.context() as patch:
        patch.setattr('gfl_det.engine.preflight.data.read_columns', lambda path: None)
        assert plain_fault(str(path)) == fault
    assert '1 (id ' in fault


def test_the_check_before_training_takes_columns(tmp_path):
    path, _ = plain_file(tmp_path)
    source = AnnotationSource('train', str(path), classes=CLASSES)
    found = check_annotations_alone(source, read_columns(path))
    assert found == check_annotations_alone(source, check.read(str(path)))
    assert [each.code for each in found if each.level == 'warning']


def test_records_are_made_when_asked_for(tmp_path, caplog):
    """Nothing per box is made in Python: 20,000 boxes take 60 bytes each at most."""
    import tracemalloc

    path, _ = plain_file(tmp_path, 20_000)
    options = dict(data_prefix=dict(img=''), metainfo=dict(classes=CLASSES), pipeline=[])
    found = read_columns(path)
    coco.keep(str(path), found)
    tracemalloc.start()
    dataset = CocoDataset(ann_file=str(path), **options)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 20_000 * 60
    assert len(dataset.get_data_info(0)['instances']) == 20_000
    assert isinstance(found, Columns)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
