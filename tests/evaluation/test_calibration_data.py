"""What is read from COCO JSON, and what is refused in one sentence."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from gfl_det import calibration
from gfl_det.calibration import detections_from_coco, gts_from_coco, match, read_json
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import check_detections, fingerprint
from gfl_det.evaluation.functional import laece

GTS = dict(
    images=[dict(id=7, file_name='seven.jpg'), dict(id=0, file_name='nought.jpg')],
    categories=[dict(id=5, name='late'), dict(id=0, name='early')],
    annotations=[
        dict(id=0, image_id=7, category_id=5, bbox=[0, 0, 10, 10]),
        dict(id=1, image_id=0, category_id=0, bbox=[1, 2, 3, 4], iscrowd=1),
    ],
)
RESULTS = [
    dict(image_id=0, category_id=0, bbox=[1, 2, 3, 4], score=0.25),
    dict(image_id=7, category_id=5, bbox=[0, 0, 10, 10], score=1),
]


def changed(value, *path):
    """Copies of TRUTHS or RESULTS with one entry set."""
    data = copy.deepcopy(RESULTS if isinstance(path[0], int) else GTS)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def test_classes_keep_the_files_order_and_images_are_sorted() -> None:
    gts = gts_from_coco(GTS)
    assert gts.image_ids == [0, 7]
    assert gts.class_names == ['late', 'early']
    assert gts.image.tolist() == [1, 0]
    assert gts.label.tolist() == [0, 1]
    assert gts.crowd.tolist() == [False, True]
    assert gts.counts().tolist() == [1, 0]
    detections = detections_from_coco(RESULTS, gts)
    assert detections.image.tolist() == [0, 1]
    assert detections.label.tolist() == [1, 0]
    assert detections.scores.tolist() == [0.25, 1]


def test_ids_may_be_texts_or_mixed() -> None:
    mixed = changed('b', 'images', 0, 'id')
    mixed['annotations'][0]['image_id'] = 'b'
    assert gts_from_coco(mixed).image_ids == [0, 'b']


def test_the_order_of_categories_changes_no_value() -> None:
    swapped = copy.deepcopy(GTS)
    swapped['categories'].reverse()
    values = []
    for dataset in (GTS, swapped):
        gts = gts_from_coco(dataset)
        (found,) = match(detections_from_coco(RESULTS, gts), gts, [0.5])
        values.append(dict(zip(gts.class_names, laece(found).per_class)))
    np.testing.assert_equal(values[0], values[1])


def test_classes_are_chosen_by_name() -> None:
    gts = gts_from_coco(GTS)
    chosen = gts.of_classes(['early'])
    assert chosen.category_ids == [0]
    assert chosen.label.tolist() == [0]
    assert chosen.boxes.tolist() == [[1, 2, 3, 4]]
    both = gts.of_classes(['early', 'late'])
    assert both.label.tolist() == [1, 0]
    assert both.category_ids == [0, 5]
    with pytest.raises(DataError, match="no class named \\['dog'\\]; it has \\['late', 'early'\\]"):
        gts.of_classes(['dog'])
    with_absent = gts.of_classes(['early', 'dog', 'late'])
    assert with_absent.label.tolist() == [2, 0]
    assert with_absent.category_ids == [0, 6, 5]
    assert with_absent.counts().tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="no class named \\['dog'\\]"):  # it may be "late"
        gts.of_classes(['early', 'dog'])


def test_fingerprints_tell_data_apart() -> None:
    def of(gts: dict, results: list) -> str:
        flat = gts_from_coco(gts)
        return fingerprint(flat, detections_from_coco(results, flat))

    same = of(GTS, RESULTS)
    reordered = copy.deepcopy(GTS)
    reordered['images'].reverse()
    assert of(reordered, RESULTS) == same
    for other in (
        (changed([0, 0, 10, 11], 'annotations', 0, 'bbox'), RESULTS),
        (changed(1, 'annotations', 0, 'iscrowd'), RESULTS),
        (changed('other.jpg', 'images', 0, 'file_name'), RESULTS),
        (changed('renamed', 'categories', 0, 'name'), RESULTS),
        (GTS, changed(0.26, 0, 'score')),
        (GTS, RESULTS[:1]),
    ):
        assert of(*other) != same


@pytest.mark.parametrize(
    ('dataset', 'words'),
    [
        ([], 'holds a JSON list instead of an object'),
        (dict(images=[], categories=[]), 'lists no images'),
        (dict(images=[dict(id=1)], categories=[]), 'lists no categories'),
        (dict(images=[dict(id=1)]), 'has no list "categories"'),
        (changed({}, 'images', 0), r'images\[0\] has no "id"'),
        (changed(dict(id=3, image_id=7, category_id=5), 'annotations', 0), 'has no "bbox"'),
        (changed(9, 'annotations', 0, 'image_id'), 'image_id 9'),
        (changed(9, 'annotations', 0, 'category_id'), 'category_id 9'),
        (changed(1, 'annotations', 0, 'id'), 'annotations have duplicate ids'),
        (changed([0, 0, 1], 'annotations', 1, 'bbox'), r'annotation 1 has the bbox \[0, 0, 1\]'),
        (changed([0, 0, 1, float('nan')], 'annotations', 0, 'bbox'), 'annotation 0 has the bbox'),
        (changed('big', 'annotations', 1, 'bbox'), "annotation 1 has the bbox 'big'"),
    ],
)
def test_annotations_that_are_refused(dataset, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        gts_from_coco(dataset, 'val.json')
    assert str(caught.value).startswith('val.json')


@pytest.mark.parametrize(
    ('results', 'words'),
    [
        (dict(annotations=[]), 'not a list of COCO results'),
        ([1, 2], 'not a list of COCO results'),
        (changed({}, 0), 'entry 0 has no "image_id"'),
        (changed(99, 1, 'image_id'), 'the image_id \\[99\\] is not an image of the'),
        (changed(99, 1, 'category_id'), 'the category_id \\[99\\] is not a class of the'),
        (changed(float('nan'), 1, 'score'), 'entry 1 has the score nan, which'),
        (changed(1.2, 1, 'score'), 'entry 1 has the score 1.2, which'),
        (changed(-0.1, 0, 'score'), 'entry 0 has the score -0.1, which'),
        (changed('0.5', 0, 'score'), "entry 0 has the score '0.5'"),
        (changed(True, 0, 'score'), 'entry 0 has the score True'),
        (changed([0, 0, float('inf'), 1], 1, 'bbox'), 'entry 1 has the bbox'),
        (changed(None, 1, 'bbox'), 'entry 1 has the bbox None'),
    ],
)
def test_detections_that_are_refused(results, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        detections_from_coco(results, gts_from_coco(GTS), 'found.json')
    assert str(caught.value).startswith('found.json')


def test_bad_scores_are_counted_from_the_second_on() -> None:
    detections = detections_from_coco(RESULTS, gts_from_coco(GTS))
    detections.scores[0] = 1.5
    with pytest.raises(DataError, match=r'the score 1\.5, which is not in \[0, 1\]: give'):
        check_detections(detections)
    detections.scores[1] = -0.5
    with pytest.raises(DataError, match=r'\(2 such'):
        check_detections(detections)


def test_boxes_that_are_not_finite_are_refused_in_arrays_too() -> None:
    gts = gts_from_coco(GTS)
    detections = detections_from_coco(RESULTS, gts)
    detections.boxes[1, 2] = np.nan
    with pytest.raises(DataError, match=r'id 1\) .*not finite'):
        check_detections(detections)


def test_all_pure_functions_have_one_home() -> None:
    from gfl_det.calibration import functional

    for name in functional.__all__:
        assert getattr(functional, name) is not None
    gts = gts_from_coco(GTS)
    (found,) = functional.match(detections_from_coco(RESULTS, gts), gts, [0.5])
    assert functional.laece(found).mean == 0


def test_names_of_0_1_remain() -> None:
    assert calibration.Truths is calibration.GroundTruth
    assert calibration.truths_from_coco is gts_from_coco
    pickled = b'cgfl_det.evaluation.detections\nTruths\n.'
    assert pickle.loads(pickled) is calibration.GroundTruth
    matches = calibration.Matches(0.5, *np.zeros((5, 1)), gt=np.array([3]), gt_counts=np.ones(1))
    assert matches.truth is matches.gt
    assert matches.truths is matches.gt_counts


def test_files(tmp_path: Path) -> None:
    path = tmp_path / 'val.json'
    path.write_text(json.dumps(GTS))
    assert read_json(path) == GTS
    path.write_text('{"images": [')
    with pytest.raises(DataError, match=r'val\.json .*JSON'):
        read_json(path)
    with pytest.raises(DataError, match=r'none\.json cannot be read'):
        read_json(tmp_path / 'none.json')
