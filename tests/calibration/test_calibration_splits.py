"""Random parts of a data set: complete, reproducible, and true to what they are parts of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.calibration import gts_from_coco
from gfl_det.calibration.splits import Judged, split, split_images, take_images
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections
from gfl_det.evaluation.matching import match

WRITTEN = [0, 4, 5, 7]


def dataset(images: int, boxes: int = 3) -> dict:
    """Images numbered downwards from their number, each with boxes of two classes."""
    return dict(
        images=[dict(id=n, file_name=f'{n}.jpg') for n in range(images, 0, -1)],
        categories=[dict(id=7, name='cat'), dict(id=3, name='dog')],
        annotations=[
            dict(
                id=boxes * n + b, image_id=n, category_id=(7, 3)[b % 2], bbox=[10 * b, n, 8, 5 + b]
            )
            for n in range(1, images + 1)
            for b in range(boxes)
        ],
    )


def judged(images: int, seed: int = 0) -> Judged:
    """Detections that are the gt boxes, moved a little, with random scores."""
    gts = gts_from_coco(dataset(images))
    generator = np.random.default_rng(seed)
    boxes = gts.boxes + generator.normal(0, 0.5, gts.boxes.shape)
    scores = generator.uniform(size=len(boxes))
    return Judged(gts, Detections(gts.image, gts.label, boxes, scores))


@given(st.integers(2, 60), st.integers(-3, 10), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_two_parts_are_the_whole(images: int, seed: int, share: float) -> None:
    gts = gts_from_coco(dataset(images, boxes=1))
    number = round(share * images)
    if number in (0, images):
        with pytest.raises(DataError, match='give more images'):
            split_images(gts, seed, share)
        return
    first, second = split_images(gts, seed, share)
    assert len(first) == number
    assert sorted([*first, *second]) == list(range(images))
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()


def test_the_seed_and_nothing_else_decides() -> None:
    gts = gts_from_coco(dataset(40))
    again = dataset(40)
    again['images'].reverse()
    again['annotations'] = again['annotations'][::2]
    for seed in range(5):
        one, other = split_images(gts, seed), split_images(gts_from_coco(again), seed)
        assert all((a == b).all() for a, b in zip(one, other))
    cuts = {tuple(split_images(gts, seed)[0]) for seed in range(20)}
    assert len(cuts) == 20
    # Written down: data sets that are cut on one machine are cut the same on another.
    assert split_images(gts_from_coco(dataset(8)), 0)[0].tolist() == WRITTEN


def test_each_image_falls_on_either_side_alike() -> None:
    gts = gts_from_coco(dataset(50, boxes=1))
    times = np.zeros(50)
    for seed in range(400):
        times[split_images(gts, seed)[0]] += 1
    # 400 tosses: 200 with a standard deviation of 10
    assert times.min() > 155
    assert times.max() < 245
    assert times.mean() == 200


def test_parts_match_as_they_do_in_the_whole() -> None:
    whole = judged(30)
    (all_found,) = match(whole.detections, whole.gts, [0.5])
    state = dict(zip(whole.detections.scores[all_found.row], all_found.iou))
    for part in split(whole, seed=4, share=0.3):
        (found,) = match(part.detections, part.gts, [0.5])
        assert len(found.row) == len(part.detections.scores) > 0
        for score, iou in zip(found.scores, found.iou):
            assert iou == state[score]
        assert [part.gts.image_ids[i] for i in part.gts.image] == part.gts.boxes[:, 1].astype(
            int
        ).tolist()


def test_a_split_is_into_halves_unless_told() -> None:
    whole = judged(30)
    halves = split(whole)
    assert [len(part.gts.image_ids) for part in halves] == [15, 15]
    chosen = [whole.gts.image_ids[i] for i in split_images(whole.gts, seed=0)[0]]
    assert halves[0].gts.image_ids == chosen


def test_a_part_of_images_without_anything_is_one_of_empty_arrays() -> None:
    whole = judged(5)
    none = whole.detections.take(np.zeros(0, int))
    part = take_images(Judged(whole.gts, none), np.array([2]))
    assert part.gts.image_ids == [3]
    assert len(part.detections.scores) == 0
    assert part.detections.boxes.shape == (0, 4)


@pytest.mark.parametrize('share', [0, 1, -0.5, float('nan')])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r'share'):
        split_images(gts_from_coco(dataset(9)), 0, share)
