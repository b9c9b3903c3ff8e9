"""Scenes whose boxes are as good as their edges are sure, among false positives."""

from __future__ import annotations

import numpy as np

from gfl_det import calibration

PER_IMAGE = 6  # detections: of four gt boxes, and two where there is nothing


def scene(seed: int, images: int = 60):
    """Gts, and detections whose IoU is told by the spread of their edges, hardly by their score.

    False positives score lower than most and have wide edges.
    """
    rng = np.random.default_rng(seed)
    entries, boxes, logits, scores = [], [], [], []
    bins = np.arange(9)
    for image in range(images):
        for place in range(4):
            x = 100.0 * place
            entries.append(dict(image_id=image, category_id=1 + place % 2, bbox=[x, 0, 64, 64]))
            spread = rng.choice([0.3, 1.5])
            shift = spread * rng.normal() * 8
            boxes.append((image, place % 2, x + shift, 0.0, 64.0, 64.0))
            logits.append(np.tile(-((bins - 4) ** 2) / (2 * spread**2), (4, 1)))
            scores.append(rng.uniform(0.2, 0.9))
        for place in range(PER_IMAGE - 4):
            boxes.append((image, rng.integers(2), 100.0 * place, 500.0, 64.0, 64.0))
            logits.append(np.tile(-((bins - 4) ** 2) / (2 * 1.5**2), (4, 1)))
            scores.append(rng.uniform(0.05, 0.4))
    dataset = dict(
        images=[dict(id=image, file_name=f'{seed}-{image}') for image in range(images)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog'), dict(id=3, name='eel')],
        annotations=[dict(id=number, **entry) for number, entry in enumerate(entries, 1)],
    )
    rows = np.array(boxes)
    found = calibration.Detections(
        rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2:], np.array(scores)
    )
    edges = calibration.EdgeDetections(found, np.array(logits), np.full((len(rows), 4), 8.0))
    return calibration.gts_from_coco(dataset), edges
