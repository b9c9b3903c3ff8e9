"""Ground truth and detections out of a random generator, to compare evaluators on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from gfl_det.ops.boxes import xywh_to_xyxy

IMAGE_SIZE = (640, 480)  # width, height, px
MEAN_GTS = 7.0  # of an image, as in COCO
CROWD_SHARE = 0.03
HIT_SHARE = 0.4  # of detections that lie near a gt box


class CocoSet(NamedTuple):
    """Ground truth as a COCO file holds them, and what a detector would hand to a metric."""

    dataset: dict[str, Any]
    samples: list[dict[str, Any]]  # a data sample of each image, as ``CocoMetric.process`` reads it

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes."""
        return tuple(category['name'] for category in self.dataset['categories'])


def make_set(num_images: int, num_detections: int, num_classes: int, seed: int = 0) -> CocoSet:
    """Draw gt boxes and detections; the same for the same arguments.

    Args:
        num_images: Images; about one in a thousand has no gt box.
        num_detections: Detections of each image, of which `HIT_SHARE` lie near a gt box and mostly
            have its class. Scores come in steps of 1/256, so that many are equal.
        num_classes: Classes, named ``c0``, ``c1`` ...; ids start at 1.
        seed: Of the generator.

    Returns:
        The set.
    """
    generator = np.random.default_rng(seed)
    width, height = IMAGE_SIZE
    annotations: list[dict[str, Any]] = []
    samples = []
    for image in range(1, num_images + 1):
        count = generator.poisson(MEAN_GTS)
        boxes = _random_boxes(generator, count)
        labels = generator.integers(num_classes, size=count)
        crowd = generator.random(count) < CROWD_SHARE
        samples.append(
            dict(
                img_id=image,
                ori_shape=(height, width),
                pred_instances=_detect(generator, boxes, labels, num_detections, num_classes),
            )
        )
        annotations += [
            dict(
                id=len(annotations) + index + 1,
                image_id=image,
                category_id=int(label) + 1,
                bbox=box,
                area=box[2] * box[3],
                iscrowd=int(is_crowd),
            )
            for index, (box, label, is_crowd) in enumerate(zip(boxes.tolist(), labels, crowd))
        ]
    images = [dict(id=each['img_id'], width=width, height=height) for each in samples]
    categories = [dict(id=label + 1, name=f'c{label}') for label in range(num_classes)]
    return CocoSet(dict(images=images, annotations=annotations, categories=categories), samples)


def _random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (count, 4) xywh, px, with sides from 4 to 300 px, log-uniform."""
    sides = np.exp(generator.uniform(np.log(4), np.log(300), (count, 2)))
    corners = generator.random((count, 2)) * (np.array(IMAGE_SIZE) - sides)
    return np.hstack([corners, sides]).round(2)


def _detect(
    generator: np.random.Generator,
    gts: np.ndarray,
    gt_labels: np.ndarray,
    count: int,
    num_classes: int,
) -> dict[str, torch.Tensor]:
    """Detections of one image in the form of ``pred_instances``, boxes in xyxy."""
    boxes = _random_boxes(generator, count)
    labels = generator.integers(num_classes, size=count)
    scores = generator.beta(1, 6, count)
    hits = int(count * HIT_SHARE) if len(gts) else 0
    chosen = generator.integers(max(len(gts), 1), size=hits)
    if hits:
        sides = np.tile(gts[chosen, 2:], 2)
        boxes[:hits] = gts[chosen] + generator.normal(0, 0.1, (hits, 4)) * sides
        boxes[:hits, 2:] = boxes[:hits, 2:].clip(1)
        agrees = generator.random(hits) < 0.8
        labels[:hits][agrees] = gt_labels[chosen][agrees]
        scores[:hits] = generator.beta(3, 3, hits)
    order = np.argsort(-scores)
    corners = xywh_to_xyxy(boxes)
    return dict(
        bboxes=torch.tensor(corners[order], dtype=torch.float32),
        scores=torch.tensor((scores[order] * 256).round() / 256, dtype=torch.float32),
        labels=torch.tensor(labels[order]),
    )
