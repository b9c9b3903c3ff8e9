"""Decisions about suspicious labels: what each does to a file, and files that do not belong."""

from __future__ import annotations

import copy
import json

import pytest

from gfl_det.datasets.decisions import apply_decisions, digest_of, read_decisions
from gfl_det.errors import DataError

DATASET = dict(
    info=dict(year=2026),
    images=[dict(id=7, file_name='a.png'), dict(id='b', file_name='b.png', extra=1)],
    categories=[dict(id=3, name='cat'), dict(id=4, name='dog')],
    annotations=[
        dict(id=index, image_id=7, category_id=3, bbox=[0, 0, 9, 9], area=81, tag=f't{index}')
        for index in range(1, 6)
    ],
)
DATASET['annotations'][0]['segmentation'] = [[0, 0, 9, 0, 9, 9]]


def decided(kind: str, decision: str, annotation: int | None, **more: object) -> dict:
    return dict(kind=kind, decision=decision, image_id=7, annotation_id=annotation, **more)


def test_every_kind_is_repaired_and_all_else_stays() -> None:
    before = copy.deepcopy(DATASET)
    decisions = [
        decided('loose', 'take', 1, suggested_bbox=[1, 2, 3, 4.5]),
        decided('class', 'take', 2, suggested_category_id=4),
        decided('spurious', 'take', 3),
        decided('duplicate', 'take', 3),  # the same label by another kind
        decided('loose', 'keep', 4, suggested_bbox=None),
        decided('duplicate', 'mark', 5),
        dict(
            decided('missing', 'take', None, suggested_bbox=[5, 5, 2, 2], suggested_category_id=4),
            image_id='b',
        ),
        dict(decided('missing', 'mark', None), image_id='b'),
    ]
    new, counts = apply_decisions(DATASET, decisions, 'decisions.json')
    assert before == DATASET
    labels = {each['id']: each for each in new['annotations']}
    assert list(labels) == [1, 2, 4, 5, 6]
    assert labels[1] == dict(
        id=1, image_id=7, category_id=3, bbox=[1, 2, 3, 4.5], area=13.5, tag='t1'
    )
    assert labels[2] == {**before['annotations'][1], 'category_id': 4}
    assert labels[4] == before['annotations'][3]
    assert labels[5] == {**before['annotations'][4], 'marked': True}
    assert labels[6] == dict(
        id=6, image_id='b', category_id=4, bbox=[5, 5, 2, 2], area=4, iscrowd=0
    )
    assert new['images'] == [before['images'][0], {**before['images'][1], 'marked': True}]
    assert (new['info'], new['categories']) == (before['info'], before['categories'])
    assert counts == dict(moved=1, renamed=1, removed=1, added=1, marked=2, kept=1)


def test_nothing_decided_changes_nothing() -> None:
    new, counts = apply_decisions(DATASET, [], 'decisions.json')
    assert new == DATASET
    assert not counts


@pytest.mark.parametrize(
    ('entry', 'names'),
    [
        (decided('loose', 'take', 99, suggested_bbox=[0, 0, 1, 1]), 'annotation_id 99'),
        (decided('loose', 'take', 1, suggested_bbox=[0, 0, 1]), r'\[0, 0, 1\]'),
        (decided('loose', 'take', 1, suggested_bbox=[0, 0, 1, float('nan')]), 'nan'),
        (decided('loose', 'take', 1, suggested_bbox=[0, 0, 0, 5]), r'\[0, 0, 0, 5\]'),
        (decided('class', 'take', 1, suggested_category_id=9), 'category 9'),
        (decided('class', 'take', 1, suggested_category_id=[]), r'category \[\]'),
        (dict(decided('missing', 'take', None), image_id=8), 'image_id 8'),
        (decided('spurious', 'take', [1]), r'annotation_id \[1\]'),
    ],
)
def test_a_decision_that_cannot_be_applied_is_named(entry, names) -> None:
    with pytest.raises(DataError, match=f'decisions.json: decision 0 .*{names}'):
        apply_decisions(DATASET, [entry], 'decisions.json')


def test_files_that_hold_no_decisions_or_others() -> None:
    digest = digest_of(json.dumps(DATASET).encode())

    def read(content: object) -> list[dict]:
        return read_decisions(content, 'd.json', digest, 'labels.json')

    good = decided('spurious', 'take', 1)
    assert read(dict(sha256=digest, decisions=[good])) == [good]
    for content in ([], {}, dict(decisions=3), dict(decisions=[1])):
        with pytest.raises(DataError, match=r'd\.json holds no decisions'):
            read(content)
    with pytest.raises(DataError, match=r"labels\.json .*'old\.json'"):
        read(dict(sha256='0', annotations='old.json', decisions=[]))
    for field, value in (('kind', 'odd'), ('decision', None)):
        with pytest.raises(DataError, match=f'decision 0 has the {field} {value!r}'):
            read(dict(sha256=digest, decisions=[{**good, field: value}]))
