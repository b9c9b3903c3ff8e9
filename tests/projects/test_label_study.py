"""The study of label errors: what is spoilt, what counts as found, average precision, the order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from gfl_det.evaluation.label_evidence import Labels, UncertainDetections, near_pairs
from gfl_det.ops.boxes import xywh_to_xyxy
from projects.label_errors import methods, study
from projects.label_errors.spoiling import KINDS, spoil
from tests.helpers import label_scenes

SIZES = np.full((label_scenes.IMAGES, 2), label_scenes.SIDE, float)


@pytest.fixture(scope='module')
def data() -> study.DataSet:
    scene = label_scenes.make_scene(errors=False)
    return study.DataSet(label_scenes.to_coco(scene)[0], scene.found)


def test_each_kind_spoils_its_share_of_other_labels(data) -> None:
    labels = data.labels
    spoilt = spoil(labels, 3, SIZES, 0.15, KINDS, np.random.default_rng(0))
    each = round(0.05 * len(labels.image))
    new = spoilt.labels
    assert len(spoilt.dropped.image) == each
    counts = [spoilt.loose.sum(), spoilt.swapped.sum(), spoilt.spurious.sum()]
    assert [*counts, (spoilt.twin >= 0).sum()] == [each] * 4
    assert not (spoilt.loose & spoilt.swapped).any()
    assert len(new.image) == len(labels.image) + each  # two kinds add, one takes away
    # A moved edge is 15 % of the side away from the clean one.
    kept = {tuple(box): box for box in labels.boxes}
    clean = [tuple(box) in kept for box in new.boxes]
    assert np.sum(clean) == len(labels.image) - 2 * each
    for row in np.flatnonzero(spoilt.loose):
        mine = labels.boxes[labels.image == new.image[row]]
        change = np.abs(xywh_to_xyxy(mine) - xywh_to_xyxy(new.boxes[row])).round(6)
        nearest = change[np.count_nonzero(change, axis=1) == 1]
        sides = mine[np.count_nonzero(change, axis=1) == 1][:, 2:]
        assert len(nearest) == 1
        assert nearest.max() == pytest.approx(0.15 * sides[0, int(nearest.argmax()) % 2])
    again = np.flatnonzero(spoilt.twin >= 0)
    assert (new.label[again] == new.label[spoilt.twin[again]]).all()
    assert (new.image[again] == new.image[spoilt.twin[again]]).all()
    assert not len(near_pairs(new.take(spoilt.spurious), labels, 0.3)[0])
    alone = spoil(labels, 3, SIZES, 0.15, ('class',), np.random.default_rng(0))
    assert (alone.labels.boxes == labels.boxes).all()
    assert (alone.labels.label != labels.label).sum() == each


def test_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    score, wrong = rng.random(200), rng.random(200) < 0.2
    wanted = average_precision_score(wrong, score)
    assert study.average_precision(score, wrong, int(wrong.sum())) == pytest.approx(wanted)
    half = study.average_precision(score, wrong, int(2 * wrong.sum()))
    assert half == pytest.approx(wanted / 2)  # what is no candidate counts
    assert study.precision_first(score, wrong) == wrong[np.argsort(-score)][:50].mean()


def test_a_missing_label_is_found_once() -> None:
    one = np.zeros(3, int)
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 10, 10]])
    found = UncertainDetections(one, one, boxes, np.ones(3), np.ones((3, 4)))
    ranking = methods.Ranking(np.array([2, 0, 1]), np.array([0.9, 0.5, 0.7]))
    dropped = Labels(one[:1], one[:1], boxes[:1])
    assert study._refound(ranking, dropped, found).tolist() == [False, False, True]


def test_ours_is_no_worse_and_every_method_is_judged(data) -> None:
    rows = study.run_seed(data, 0.25, KINDS, seed=0)
    found = {(row['kind'], row['method']): row for row in rows}
    for kind, method in (
        ('loose', 'IoU'),
        ('loose', 'relative distance'),
        ('loose', 'ratio, one detection'),
        ('class', 'difference of scores'),
        ('missing', 'score'),
        ('spurious', 'IoU'),
        ('duplicate', 'IoU'),
    ):
        assert (
            found[kind, 'ours']['AP'] >= found[kind, method]['AP'] - 0.06
        )  # all edges are alike here
    assert found['loose', 'ours']['AP'] > 0.9
    assert 0.5 < found['class', 'ours']['expected'] < 1.5
    text = study.table([dict(data='scene', rows=[_full(row) for row in rows])], together=True)
    assert text.count('\n') == 6  # head, rule, five kinds


def _full(row: dict) -> dict:
    return dict(share=0.15, errors='together', seed=0, **row)


def test_files_are_joined_with_new_numbers(tmp_path) -> None:
    label = dict(id=1, image_id=1, category_id=3, bbox=[0, 0, 2, 2])
    one = dict(images=[dict(id=1, file_name='a')], annotations=[label], categories=[dict(id=3)])
    other = {**one, 'images': [dict(id=1, file_name='b')]}
    for name, content in (('a', one), ('b', other)):
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    both = study.joined([str(tmp_path / 'a.json'), str(tmp_path / 'b.json')])
    assert [each['id'] for each in both['images']] == [1, 2]
    assert [(each['id'], each['image_id']) for each in both['annotations']] == [(1, 1), (2, 2)]
