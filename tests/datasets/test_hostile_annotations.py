"""Malformed annotation files: each reader gives a result or one sentence."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.calibration import detections_from_coco, gts_from_coco
from gfl_det.cli.check_dataset import print_report, write_fixed
from gfl_det.cli.show import CocoGroundTruth
from gfl_det.datasets import CocoDataset
from gfl_det.datasets.annotations import check_ids, check_structure, parse
from gfl_det.datasets.checks.check import AnnotationSource, Decoding, check_file
from gfl_det.engine.preflight.data import sample_file_names
from gfl_det.engine.reach.measure import Resizing, read_boxes
from gfl_det.errors import DataError, GFLDetError
from gfl_det.evaluation.detections import read_json
from gfl_det.inference.results import Results
from tests.helpers.annotation_files import SOUND, annotation_files, sound
from tests.helpers.refusing import refusal

pytestmark = pytest.mark.usefixtures('bounds')

FILES = dict(annotation_files())
CLASSES = ('cat', 'dog')


@cache
def resizing() -> Resizing:
    """None: each image stays as it is."""
    return Resizing()


def checked(path: Path) -> None:
    """Check, print and repair as the tool does, on a terminal that takes only proper text."""
    report = check_file(
        AnnotationSource('', str(path), str(path.parent), CLASSES), Decoding(1, 10**6, bar=False)
    )
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), 'utf-8')) as out:
        print_report(report)
        written = False
        if report.repaired is not None:
            with suppress(DataError):  # nothing would be left
                write_fixed(report, str(path.with_name('fixed.json')))
                written = True
        out.flush()
        printed = out.buffer.getvalue()
    assert b'\x1b' not in printed
    assert b'\r' not in printed
    json.dumps(report.as_json())
    if written:
        repaired = parse(path.with_name('fixed.json').read_bytes(), 'fixed')
        check_structure(repaired, 'fixed')
        check_ids(repaired, 'fixed')


def loaded(path: Path) -> None:
    """Load as a training does, and each image of what remains."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    dataset = CocoDataset(
        ann_file=str(path),
        data_prefix=dict(img=str(path.parent)),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True),
        serialize_data=False,  # mmengine collects garbage after it, which takes longest of all
        pipeline=pipeline,
    )
    for index in range(min(len(dataset), 3)):
        sample = dataset[index]
        assert np.isfinite(sample['gt_bboxes'].numpy()).all()


def measured(path: Path) -> None:
    read_boxes(str(path), resizing(), np.random.default_rng(0))


def judged(path: Path) -> None:
    """Read as gt boxes of a calibration, and as detections."""
    content = read_json(path)
    with suppress(GFLDetError):
        detections_from_coco(content.get('annotations') if isinstance(content, dict) else content,
                             gts_from_coco(sound()))  # fmt: skip
    gts_from_coco(content, str(path))


def drawn(path: Path) -> None:
    CocoGroundTruth(path).of('1.png', CLASSES)


def named(path: Path) -> None:
    """Take ids of results from it, and a sample of names."""
    list(sample_file_names(str(path)))
    Results().to_coco(read_json(path))


READERS = (checked, loaded, measured, judged, drawn, named)


def assert_defined(path: Path) -> list[bool]:
    """Whether each reader refused the file; none may end in another way."""
    return [refusal(reader, path) is not None for reader in READERS]


@pytest.mark.parametrize('name', FILES)
def test_each_file_gives_a_result_or_a_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'labels.json'
    path.write_bytes(FILES[name])
    for number in (1, 2):
        write_png(tmp_path / f'{number}.png')
    refused = assert_defined(path)
    assert refused == [False] * len(READERS) or name != SOUND


def write_png(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), np.full((48, 64, 3), 90, np.uint8))


def test_the_corpus_is_large_enough() -> None:
    assert len(FILES) >= 200


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        'id': st.integers(0, 3) | JSON,
        'image_id': st.integers(0, 3) | JSON,
        'category_id': st.integers(0, 2) | JSON,
        'file_name': st.sampled_from(['1.png', '2.png', 'x/../1.png']) | JSON,
        'name': st.sampled_from(['cat', 'dog']) | JSON,
        'width': st.just(64) | JSON,
        'height': st.just(48) | JSON,
        'bbox': st.lists(st.floats() | st.integers(-100, 100), min_size=4, max_size=4) | JSON,
        'area': JSON,
        'iscrowd': JSON,
    },
)
DATASET = st.fixed_dictionaries(
    {},
    optional={
        key: st.lists(ENTRY | JSON, max_size=4) | JSON
        for key in ('images', 'annotations', 'categories')
    },
)


@given(content=DATASET | JSON)
@settings(max_examples=200)
def test_any_json_gives_a_result_or_a_sentence(tmp_path_factory, content: object) -> None:
    path = tmp_path_factory.mktemp('any') / 'labels.json'
    path.write_text(json.dumps(content))
    assert_defined(path)


@given(content=st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_give_a_sentence(content: bytes) -> None:
    said = refusal(lambda given: parse(given, 'x'), content)
    assert said is None or said.startswith('x ')
