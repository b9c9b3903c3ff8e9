"""The reference cases of calibration, where a checkout has them, and small scenes by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfl_det.calibration import Detections, Truths, detections_from_coco, truths_from_coco

CASES = Path(__file__).resolve().parents[2] / 'shared' / 'calibration_cases'
NAMES = ('main', 'nocrowd')
# For tests that need the cases; the others of a file stand alone.
needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason=f'the reference cases are not there: {CASES}'
)


@cache
def case_json(name: str) -> Any:
    return json.loads((CASES / name).read_text())


def case_data(case: str, split: str) -> tuple[Detections, Truths]:
    truths = truths_from_coco(case_json(f'{case}/{split}.json'))
    return detections_from_coco(case_json(f'{case}/detections_{split}.json'), truths), truths


def numbers(values: list) -> np.ndarray:
    """A list of the expected values, with null as NaN."""
    return np.array([np.nan if value is None else value for value in values], float)


def scene(truths: list[tuple], detections: list[tuple], classes: tuple = ('a',), images: int = 1):
    """Small data: truths (image, class, box, crowd), detections (image, class, box, score)."""
    dataset = dict(
        images=[dict(id=index) for index in range(images)],
        categories=[dict(id=index, name=name) for index, name in enumerate(classes)],
        annotations=[
            dict(id=index, image_id=image, category_id=label, bbox=list(box), iscrowd=int(crowd))
            for index, (image, label, box, crowd) in enumerate(truths)
        ],
    )
    results = [
        dict(image_id=image, category_id=label, bbox=list(box), score=score)
        for image, label, box, score in detections
    ]
    flat = truths_from_coco(dataset)
    return detections_from_coco(results, flat), flat
