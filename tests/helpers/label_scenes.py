"""A data set whose labels are known to be right, detections of it, and errors put in by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.detections import GroundTruth
from gfl_det.evaluation.label_evidence import UncertainDetections

IMAGES, PER_IMAGE, SIDE = 60, 4, 400
NAMES = ['cat', 'dog', 'cow']


class LabelScene(NamedTuple):
    """Labels with errors, by kind: index of the label, or of the image for a missing one."""

    gts: GroundTruth
    found: UncertainDetections
    wrong: dict[str, int]


def clean_boxes(rng: np.random.Generator) -> np.ndarray:
    """Four boxes per image, one in each quarter, xywh px."""
    corner = np.array([[0, 0], [200, 0], [0, 200], [200, 200]], float)
    side = rng.uniform(60, 120, (IMAGES * PER_IMAGE, 2))
    return np.concatenate([np.tile(corner, (IMAGES, 1)) + rng.uniform(5, 60, side.shape), side], 1)


def make_scene(seed: int = 0, errors: bool = True) -> LabelScene:
    """Two detections per object, errors of 2 px, which their deviations say; one label of each kind
    is wrong: 0 has an edge moved by 25 px, 1 another class, 2 is missing, 3 covers nothing (it is
    added), 4 is drawn twice.
    """
    rng = np.random.default_rng(seed)
    boxes = clean_boxes(rng)
    image = np.repeat(np.arange(IMAGES), PER_IMAGE)
    label = rng.integers(0, len(NAMES), len(image))
    edges = np.repeat(boxes, 2, 0) + rng.normal(0, 2, (2 * len(boxes), 4))
    found = UncertainDetections(
        np.repeat(image, 2),
        np.repeat(label, 2),
        edges,
        rng.uniform(0.6, 0.95, len(edges)),
        np.full((len(edges), 4), 2.0),
    )
    # What is sure of nothing: low scores anywhere.
    spot = rng.integers(0, IMAGES, 50)
    noise = np.concatenate([rng.uniform(0, 300, (50, 2)), rng.uniform(30, 90, (50, 2))], 1)
    faint = UncertainDetections(
        spot, rng.integers(0, 3, 50), noise, rng.uniform(0.1, 0.2, 50), np.full((50, 4), 20.0)
    )
    found = UncertainDetections(*map(np.concatenate, zip(found, faint)))
    wrong: dict[str, int] = {}
    if errors:
        boxes[0, 2] += 25
        label[1] = (label[1] + 1) % len(NAMES)
        extra = np.array([[170.0, 170, 60, 60], boxes[16] + [2, -2, 3, 2]])
        boxes, image = np.concatenate([boxes, extra]), np.append(image, [image[12], image[16]])
        label = np.append(label, [0, label[16]])
        kept = np.arange(len(image)) != 8
        hidden = (found.image == image[12]) & (found.scores < 0.3)
        found = found.take(~hidden)
        wrong = dict(loose=0, **{'class': 1}, missing=int(image[8]))
        wrong.update(spurious=len(kept) - 3, duplicate=len(kept) - 2)
        boxes, image, label = boxes[kept], image[kept], label[kept]
    ids = list(range(1, IMAGES + 1))
    keys = [str(each) for each in ids]
    crowd = np.zeros(len(image), bool)
    return LabelScene(
        GroundTruth(ids, keys, [5, 6, 7], NAMES, image, label, boxes, crowd), found, wrong
    )


def to_coco(scene: LabelScene) -> tuple[dict, list[dict]]:
    """Annotations and results as files have them."""
    gts, found = scene.gts, scene.found
    images = [
        dict(id=each, file_name=f'{each}.png', width=SIDE, height=SIDE) for each in gts.image_ids
    ]
    annotations = [
        dict(
            id=100 + index,
            image_id=gts.image_ids[gts.image[index]],
            category_id=gts.category_ids[gts.label[index]],
            bbox=gts.boxes[index].tolist(),
            area=float(gts.boxes[index, 2:].prod()),
            iscrowd=0,
        )
        for index in range(len(gts.image))
    ]
    categories = [dict(id=each, name=name) for each, name in zip(gts.category_ids, NAMES)]
    results = [
        dict(
            image_id=gts.image_ids[found.image[row]],
            category_id=gts.category_ids[found.label[row]],
            bbox=found.boxes[row].tolist(),
            score=float(found.scores[row]),
            edge_std=found.edge_std[row].tolist(),
        )
        for row in range(len(found.image))
    ]
    return dict(images=images, annotations=annotations, categories=categories), results
