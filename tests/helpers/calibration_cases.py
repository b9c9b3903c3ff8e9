"""Reference cases of calibration (tests/data/calibration_cases), and small scenes by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gfl_det.calibration import Detections, GroundTruth, detections_from_coco, gts_from_coco

CASES = Path(__file__).resolve().parents[1] / 'data' / 'calibration_cases'
NAMES = ('main', 'nocrowd')
FAR, UNIT = (500, 500, 10, 10), (0, 0, 10, 10)  # boxes xywh


@cache
def case_json(name: str) -> Any:
    return json.loads((CASES / name).read_text())


def case_data(case: str, split: str) -> tuple[Detections, GroundTruth]:
    gts = gts_from_coco(case_json(f'{case}/{split}.json'))
    return detections_from_coco(case_json(f'{case}/detections_{split}.json'), gts), gts


def numbers(values: list) -> np.ndarray:
    """A list of the expected values, with null as NaN."""
    return np.array([np.nan if value is None else value for value in values], float)


def scene(gts: list[tuple], detections: list[tuple], classes: tuple = ('a',), images: int = 1):
    """Small data: gt boxes (image, class, box, crowd), detections (image, class, box, score)."""
    dataset = dict(
        images=[dict(id=index) for index in range(images)],
        categories=[dict(id=index, name=name) for index, name in enumerate(classes)],
        annotations=[
            dict(id=index, image_id=image, category_id=label, bbox=list(box), iscrowd=int(crowd))
            for index, (image, label, box, crowd) in enumerate(gts)
        ],
    )
    results = [
        dict(image_id=image, category_id=label, bbox=list(box), score=score)
        for image, label, box, score in detections
    ]
    flat = gts_from_coco(dataset)
    return detections_from_coco(results, flat), flat


def random_scene(seed: int) -> tuple[Detections, GroundTruth]:
    """Crowded, on a coarse grid, so that equal overlaps and equal scores abound."""
    rng = np.random.default_rng(seed)
    images, classes, number, found = 3, 2, rng.integers(0, 12), rng.integers(0, 25)

    def boxes(count: int) -> np.ndarray:
        return np.concatenate(
            [rng.integers(0, 4, (count, 2)) * 5, rng.integers(1, 4, (count, 2)) * 5], axis=1
        ).astype(float)

    gts = GroundTruth(
        list(range(images)),
        [''] * images,
        list(range(classes)),
        ['a', 'b'],
        rng.integers(0, images, number),
        rng.integers(0, classes, number),
        boxes(number),
        rng.random(number) < 0.25,
    )
    detections = Detections(
        rng.integers(0, images, found),
        rng.integers(0, classes, found),
        boxes(found),
        rng.integers(1, 6, found) / 5,
    )
    if found:
        detections.boxes[0, 2] *= rng.choice([1, -1])  # turned inside out
    return detections, gts
