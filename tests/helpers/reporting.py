"""Made-up results for reports: of any size, with errors of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (640, 480)  # width, height
GTS = 7  # an image


def made_up(
    images: int, classes: int, detections: int, edges: bool = True, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO annotations and results.

    Half of the gt boxes of each image are found at their place with some error, at times as another
    class; the other detections lie anywhere, with low scores.
    """
    rng = np.random.default_rng(seed)
    names = [f'class {index}' for index in range(classes)]
    number = rng.integers(0, 2 * GTS + 1, images)
    image = np.repeat(np.arange(images), number)
    label, boxes = rng.integers(0, classes, len(image)), _boxes(rng, len(image))
    dataset = dict(
        images=[
            dict(id=index + 1, file_name=f'{index:06d}.jpg', width=SIZE[0], height=SIZE[1])
            for index in range(images)
        ],
        categories=[dict(id=index + 1, name=name) for index, name in enumerate(names)],
        annotations=[
            dict(id=i + 1, image_id=int(a) + 1, category_id=int(b) + 1, bbox=box, iscrowd=0)
            for i, (a, b, box) in enumerate(zip(image, label, boxes.tolist()))
        ],
    )
    for entry in dataset['annotations']:
        entry['area'] = entry['bbox'][2] * entry['bbox'][3]
    results: list[dict[str, Any]] = []
    for index in range(images):
        mine = np.flatnonzero(image == index)
        near = rng.choice(mine, min(len(mine), detections) // 2 + len(mine) % 2, replace=False)
        std = rng.uniform(0.5, 6, (detections, 4))
        found = _boxes(rng, detections)
        found[: len(near)] = boxes[near] + (rng.normal(size=(len(near), 4)) * std[: len(near)])
        of = rng.integers(0, classes, detections)
        of[: len(near)] = np.where(rng.random(len(near)) < 0.85, label[near], of[: len(near)])
        score = rng.uniform(0.01, 0.4, detections)
        score[: len(near)] = rng.uniform(0.2, 1, len(near))
        rows = zip(of.tolist(), found.clip(0.5).tolist(), score.tolist(), std.tolist())
        for category, box, value, spread in rows:
            entry = dict(image_id=index + 1, category_id=category + 1, bbox=box, score=value)
            results.append({**entry, 'edge_std': spread} if edges else entry)
    return dataset, results


def write_images(folder: Path, dataset: dict[str, Any]) -> None:
    """Blurred noise under the names of the data set, the same few pictures again and again."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sources = []
    for index, entry in enumerate(dataset['images']):
        path = folder / entry['file_name']
        if index < 4:
            noise = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 1.5))
            sources.append(path)
        else:
            path.symlink_to(sources[index % len(sources)])


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    side = np.exp(rng.uniform(np.log(10), np.log(200), (count, 2)))
    corner = rng.random((count, 2)) * np.maximum(np.array(SIZE) - side, 1)
    return np.concatenate([corner, side], 1).round(2)
