"""Which image of an annotation file a data sample is, by its id and its path."""

from __future__ import annotations

import pytest

from gfl_det.errors import DataError
from gfl_det.evaluation.shown import Sample, match_samples, once, samples_once

IDS = [7, 3, 5]
NAMES = ['a/one.png', 'b/one.png', 'two.png']


@pytest.mark.parametrize(
    ('sample', 'row'),
    [
        (Sample(3), 1),
        (Sample(3, '/data/b/one.png'), 1),
        (Sample(7, '/data/b/one.png'), 1),  # the id is another data set's
        (Sample(99, '/data/two.png'), 2),
        (Sample(5, '/data/two.jpg'), 2),  # converted
        (Sample(7, '/data/a/one.jpeg'), 0),
    ],
)
def test_a_sample_is_the_image_that_id_and_path_tell(sample: Sample, row: int) -> None:
    assert match_samples([sample], IDS, NAMES, 'val.json') == [row]


@pytest.mark.parametrize(
    'sample',
    [
        Sample(99),
        Sample(99, '/data/one.png'),  # of two folders
        Sample(99, '/data/two.jpg'),
        Sample(5, '/data/three.png'),
        Sample(7, '/data/one.jpg'),
    ],
)
def test_a_sample_in_doubt_is_missing(sample: Sample) -> None:
    with pytest.raises(DataError, match=r'^1 images .*val\.json.* has the id'):
        match_samples([sample], IDS, NAMES, 'val.json')


def test_a_file_without_names_is_read_by_id() -> None:
    assert match_samples([Sample(5, '/data/x.png'), Sample(7)], IDS, [''] * 3, 'val.json') == [2, 0]


def test_two_files_are_not_one_image() -> None:
    samples = [Sample(5, '/data/two.png'), Sample(5, '/data/two.jpg')]
    with pytest.raises(DataError, match=r'/data/two\.png and /data/two\.jpg are one image'):
        match_samples(samples, IDS, NAMES, 'val.json')


def test_the_first_of_several_counts() -> None:
    assert once('abcd', [4, 2, 4, 2]) == [0, 1]
    samples = [Sample(1, 'x'), Sample(1, 'y'), Sample(1, 'x'), Sample(1), Sample(1), Sample(1)]
    assert samples_once(samples, [0, 0, 0, 8, 9, 8]) == [0, 1, 0, 3, 4, 3]
